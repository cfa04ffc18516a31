"""3DEqualizer v4, "export points": a count, then for each point its name, colour, count and keyframes.

    2                                             points
    01                                            name
    0                                             colour
    61                                            keyframes
    40 407.384758225105315 232.449011732690479    frame, x, y

Frames count from 1, coordinates from the lower left corner. The real program ends its files without a line
end: that the very last number is whole shows only in its having as many decimals as the one before.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TextIO

from trackconvert.formats.base import Format
from trackconvert.lines import Lines
from trackconvert.model import ImageSize, Keyframe, Tracker
from trackconvert.names import Names

_FIRST_FRAME = 1
_NAMES = Names()


def detect(head: Sequence[str]) -> bool:
    return re.fullmatch(r"[+-]?[0-9]+", head[0]) is not None


def read(lines: Lines, size: ImageSize) -> Iterator[Tracker]:
    for _ in range(lines.count(lines.need("the number of points"), "the number of points")):
        name, camera = _NAMES.split(lines.need("a point's name"))
        color = lines.integer(lines.need("a point's colour"), "a point's colour")
        count = lines.count(lines.need("the number of keyframes"), "the number of keyframes")
        yield Tracker(name, [_keyframe(lines) for _ in range(count)], camera, color)
    while (text := lines.next()) is not None:
        if text:
            raise lines.unexpected("the end of the file after the last point", text)


def _keyframe(lines: Lines) -> Keyframe:
    frame, x, y = lines.fields("frame x y", open_end=True)
    if not lines.whole and len(y.partition(".")[2]) < len(x.partition(".")[2]):
        raise lines.error("cut short: the last number has fewer decimals than the one before")
    return Keyframe(lines.frame(frame, _FIRST_FRAME), lines.pixel(x, "x"), lines.pixel(y, "y"))


def write(out: TextIO, trackers: Iterable[Tracker], size: ImageSize) -> None:
    """Write points with 15 decimals, as the real program does; all are held in memory, as their number goes first.

    Not carried: residual, correlation, status. A camera becomes a part of the name.
    """
    trackers = list(trackers)
    out.write(f"{len(trackers)}\n")
    for tracker in trackers:
        out.write(f"{_NAMES.join(tracker.name, tracker.camera)}\n{tracker.color}\n{len(tracker.keyframes)}\n")
        for key in tracker.keyframes:
            out.write(f"{key.frame - 1 + _FIRST_FRAME} {key.x:z.15f} {key.y:z.15f}\n")


FORMAT = Format("3de", "3DEqualizer v4 points", detect, read, write, lambda size: 0.5e-15)
