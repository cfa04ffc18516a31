"""Shake tracks as text: blocks of a name, column titles and keyframes, each closed by a blank line.

    TrackName track1
       Frame             X             Y   Correlation
      111.00      2107.280      1054.390         1.000

Frames count from 1, coordinates from the lower left corner. The blank line is demanded after the
last block too: without it, a file cut between two keyframes would pass for a whole one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TextIO

from trackconvert.formats.base import Format
from trackconvert.lines import Lines
from trackconvert.model import ImageSize, Keyframe, Tracker
from trackconvert.names import Names

_FIRST_FRAME = 1
_NAMES = Names()
_KEYWORD = "TrackName "
_TITLES = "   Frame             X             Y   Correlation"


def detect(head: Sequence[str]) -> bool:
    return head[0].startswith(_KEYWORD)


def read(lines: Lines, size: ImageSize) -> Iterator[Tracker]:
    while (text := lines.next()) is not None:
        if not text:
            continue
        if not text.startswith(_KEYWORD):
            raise lines.unexpected("TrackName and a name", text)
        name, camera = _NAMES.split(text.removeprefix(_KEYWORD).strip(" \t"))
        titles = lines.need("the column titles")
        if titles.split() != _TITLES.split():
            raise lines.unexpected(f'"{" ".join(_TITLES.split())}"', titles)
        yield Tracker(name, _keyframes(lines), camera)


def _keyframes(lines: Lines) -> list[Keyframe]:
    keyframes = []
    while text := lines.next():
        frame, x, y, correlation = lines.fields("frame x y correlation", text)
        keyframes.append(
            Keyframe(
                lines.frame(frame, _FIRST_FRAME),
                lines.pixel(x, "x"),
                lines.pixel(y, "y"),
                correlation=lines.number_of(correlation, "correlation"),
            )
        )
    if text is None or not lines.whole:
        raise lines.error("cut short: no blank line after the last keyframe")
    return keyframes


def write(out: TextIO, trackers: Iterable[Tracker], size: ImageSize) -> None:
    """Write trackers with 3 decimals, one by one.

    Not carried: colour, residual, status. A camera becomes a part of the name; no correlation is 1.
    """
    for tracker in trackers:
        out.write(f"{_KEYWORD}{_NAMES.join(tracker.name, tracker.camera)}\n{_TITLES}\n")
        for key in tracker.keyframes:
            correlation = 1.0 if key.correlation is None else key.correlation
            out.write(
                f"{key.frame - 1 + _FIRST_FRAME:8.2f} {key.x:z13.3f} {key.y:z13.3f} {correlation:z13.3f} \n"
            )
        out.write("\n")


FORMAT = Format("shake", "Shake track text", detect, read, write, lambda size: 0.5e-3)
