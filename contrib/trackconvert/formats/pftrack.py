"""PFTrack .2dt, versions 4 and 5: blocks of a quoted name, a count and keyframes; version 5 adds cameras.

    "Auto_00016"                  name
    "Primary"                     camera        } version 5: once for each camera of a stereo shot,
    34                            keyframes     } without a blank line between; version 4: no camera
    228 1331.017 403.412 0.038    frame, x, y, residual

Frames count from 0. Coordinates count from the lower left pixel's centre, half a pixel from
its corner. A line that begins with # is a comment.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TextIO

from trackconvert.formats.base import Format
from trackconvert.lines import Lines
from trackconvert.model import ImageSize, Keyframe, Tracker
from trackconvert.names import Names

_FIRST_FRAME = 0
_HALF_PIXEL = 0.5
_NAMES = Names('"')
_HEAD_5 = """\
# 2D feature tracks written by trackconvert
#
# format:
# "name"
# "camera"
# <number of frames>
# <frame number> <x pixel> <y pixel> <residual>
#
"""


def detect_4(head: Sequence[str]) -> bool:
    return _version(head) == 4


def detect_5(head: Sequence[str]) -> bool:
    return _version(head) == 5


def _version(head: Sequence[str]) -> int | None:
    quoted = [line.startswith('"') for line in head if not line.startswith("#")]
    if not quoted or not quoted[0]:
        return None
    return 5 if quoted[1:2] == [True] else 4


def read_4(lines: Lines, size: ImageSize) -> Iterator[Tracker]:
    for text in _names(lines):
        name, camera = _NAMES.split(text)
        yield Tracker(name, _keyframes(lines), camera)


def read_5(lines: Lines, size: ImageSize) -> Iterator[Tracker]:
    for text in _names(lines):
        camera: str | None = lines.need("a camera's name")
        while camera:
            camera = _NAMES.decode(_unquoted(lines, "a camera's name", camera))
            yield Tracker(_NAMES.decode(text), _keyframes(lines), camera)
            camera = lines.next()


def _names(lines: Lines) -> Iterator[str]:
    """Find the next tracker's name, whenever the block before it was read."""
    while (text := lines.next()) is not None:
        if text and not text.startswith("#"):
            yield _unquoted(lines, "a tracker's name", text)


def _unquoted(lines: Lines, what: str, text: str) -> str:
    if len(text) < 3 or text[0] != '"' or text[-1] != '"':
        raise lines.unexpected(f"{what} in quotes", text)
    return text[1:-1]


def _keyframes(lines: Lines) -> list[Keyframe]:
    count = lines.count(lines.need("the number of frames"), "the number of frames")
    return [_keyframe(lines) for _ in range(count)]


def _keyframe(lines: Lines) -> Keyframe:
    frame, x, y, residual = lines.fields("frame x y residual")
    return Keyframe(
        lines.frame(frame, _FIRST_FRAME),
        lines.pixel(x, "x", offset=_HALF_PIXEL),
        lines.pixel(y, "y", offset=_HALF_PIXEL),
        residual=lines.number_of(residual, "residual"),
    )


def write_4(out: TextIO, trackers: Iterable[Tracker], size: ImageSize) -> None:
    """Write trackers with 3 decimals, one by one.

    Not carried: colour, correlation, status. A camera becomes a part of the name; no residual is 0.
    """
    for tracker in trackers:
        out.write(f'\n"{_NAMES.join(tracker.name, tracker.camera)}"\n')
        _write_keyframes(out, tracker)


def write_5(out: TextIO, trackers: Iterable[Tracker], size: ImageSize) -> None:
    """Write trackers with 3 decimals, one by one; neighbours of one name and different cameras as one block.

    Not carried: colour, correlation, status. No residual is 0.
    """
    out.write(_HEAD_5)
    name, cameras = "", set[str]()
    for tracker in trackers:
        if tracker.name != name or tracker.camera in cameras:
            out.write(f'\n"{_NAMES.encode(tracker.name)}"\n')
            name, cameras = tracker.name, set()
        cameras.add(tracker.camera)
        out.write(f'"{_NAMES.encode(tracker.camera)}"\n')
        _write_keyframes(out, tracker)
    out.write("\n")


def _write_keyframes(out: TextIO, tracker: Tracker) -> None:
    out.write(f"{len(tracker.keyframes)}\n")
    for key in tracker.keyframes:
        x, y = key.x - _HALF_PIXEL, key.y - _HALF_PIXEL
        out.write(f"{key.frame - 1 + _FIRST_FRAME} {x:z.3f} {y:z.3f} {key.residual or 0.0:z.3f}\n")


FORMAT_4 = Format("pftrack4", "PFTrack 4 .2dt", detect_4, read_4, write_4, lambda size: 0.5e-3)
FORMAT_5 = Format("pftrack5", "PFTrack 5 .2dt", detect_5, read_5, write_5, lambda size: 0.5e-3)
