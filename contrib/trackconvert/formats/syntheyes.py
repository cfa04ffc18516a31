"""Syntheyes "Tracker 2-D Paths": a line for each keyframe, the lines of a tracker together.

    Tracker1 1 -0.067728 -0.244922 15    name without space, frame, u, v, outcome code (may be missing)

Frames count from 0. u goes from -1 in the centre of the leftmost pixels to 1 in that of the rightmost, v from
-1 at the top to 1 at the bottom, so the image size is needed; the shape of pixels is not, as each
side is relative to itself. The outcome code's bits: 1 run, 2 enabled, 4 u and v are valid, 8 a key set by hand.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TextIO

from trackconvert.formats.base import Format
from trackconvert.lines import Lines
from trackconvert.model import ImageSize, Keyframe, Tracker
from trackconvert.names import Names

_FIRST_FRAME = 0
_VALID = 4
_TRACKED = 7
_KEY = 15
_NAMES = Names(r"\s|#")
_LINE = re.compile(r"\S+\s+[+-]?[0-9]+(\s+[-+]?(\.?[0-9]|nan|inf)[-+.0-9a-z]*){2,3}", re.IGNORECASE)
#: The n-th tracker of a name, where lines of one name are one tracker.
_REPEATED = re.compile(r"(.+)#([1-9][0-9]{0,8})")


def detect(head: Sequence[str]) -> bool:
    # a name may look like the start of another format; only Shake's "TrackName 1 2 3" looks like a whole line
    shake = head[1:] and head[1].split() == ["Frame", "X", "Y", "Correlation"]
    return not shake and _LINE.fullmatch(head[0]) is not None


def read(lines: Lines, size: ImageSize) -> Iterator[Tracker]:
    scale_u, scale_v = (size.width - 1) / 2, -(size.height - 1) / 2
    written, tracker = "", Tracker("-")
    seen = Counter[str]()
    while (text := lines.next()) is not None:
        if not text:
            continue
        columns = "name frame u v" if len(text.split()) == 4 else "name frame u v outcome"
        name, frame, u, v, *codes = lines.fields(columns, text)
        if name != written:
            if written:
                yield tracker
            written, tracker = name, Tracker(*_named(name, seen))
        status = lines.integer(codes[0], "the outcome code") if codes else None
        key = Keyframe(
            lines.frame(frame, _FIRST_FRAME),
            lines.pixel(u, "u", scale_u, size.width / 2),
            lines.pixel(v, "v", scale_v, size.height / 2),
            status=status,
        )
        if status is None or status & _VALID:
            tracker.keyframes.append(key)
    if written:
        yield tracker


def _named(text: str, seen: Counter[str]) -> tuple[str, list[Keyframe], str]:
    repeated = _REPEATED.fullmatch(text)
    if repeated and seen[repeated[1]] == int(repeated[2]) - 1 > 0:
        text = repeated[1]
    seen[text] += 1
    name, camera = _NAMES.split(text)
    return name, [], camera


def write(out: TextIO, trackers: Iterable[Tracker], size: ImageSize) -> None:
    """Write paths with 6 decimals of half the image's side, one by one.

    A tracker without keyframes is one line whose outcome code says that u and v are not valid; the
    second tracker of a name is `name#2`. Lines stay in the order of the keyframes; Syntheyes itself
    wants ascending frames. Not carried: colour, residual, correlation. A camera becomes a part of the name.
    """
    half_u, half_v = (size.width - 1) / 2, (size.height - 1) / 2
    seen = Counter[str]()
    for tracker in trackers:
        name = _NAMES.join(tracker.name, tracker.camera)
        seen[name] += 1
        if seen[name] > 1:
            name += f"#{seen[name]}"
        previous = None
        for key in tracker.keyframes:
            u = (key.x - size.width / 2) / half_u
            v = (size.height / 2 - key.y) / half_v
            # after a gap the tracker starts anew: without the key bit a solver would bridge the gap
            usual = _TRACKED if previous is not None and key.frame == previous + 1 else _KEY
            status = usual if key.status is None else key.status | _VALID
            out.write(f"{name} {key.frame - 1 + _FIRST_FRAME} {u:z.6f} {v:z.6f} {status}\n")
            previous = key.frame
        if not tracker.keyframes:
            out.write(f"{name} {_FIRST_FRAME} 0.000000 0.000000 0\n")


def precision(size: ImageSize) -> float:
    return 0.5e-6 * (max(size.width, size.height) - 1) / 2


FORMAT = Format("syntheyes", "Syntheyes 2-D paths", detect, read, write, precision)
