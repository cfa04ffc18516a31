"""Tracebacks as text: where the application's own code was at work, and where forkrunner, Python or a library was.

No I/O: a line is the application's if its file is neither Python's nor that of an installed package.
"""

from __future__ import annotations

import re
import sys
from typing import NamedTuple

#: As `traceback` writes them, also within a group of exceptions, and as faulthandler does.
_FRAME = re.compile(
    r'^(?P<margin>[ |+-]*)File "(?P<path>[^"\n]{1,4096})", line (?P<line>\d+),? in (?P<name>.{1,300})'
)
_INSTALLED = ("/site-packages/", "/dist-packages/", "/lib/python3", "<frozen ")


class Frame(NamedTuple):
    path: str
    line: int
    name: str
    #: Of the application.
    own: bool


def is_own(path: str) -> bool:
    """Say whether a file is the application's, as far as its name tells."""
    # <string> and <stdin> are what somebody of the application's has compiled
    return not (
        path.startswith((sys.base_prefix + "/lib/", __file__.rpartition("/")[0] + "/"))
        or any(part in path for part in _INSTALLED)
    )


def mark(text: str) -> list[tuple[str, bool]]:
    """Return the lines of a traceback, each with whether it belongs to a frame of the application.

    A frame is its line `File …` and the lines below it that are indented further: the source, and the marks under it.
    """
    lines: list[tuple[str, bool]] = []
    depth, own = 0, False
    for line in text.splitlines():
        found = _FRAME.match(line)
        if found:
            depth, own = len(found["margin"]), is_own(found["path"])
        elif len(line) - len(line.lstrip(" |")) <= depth:
            own = False
        lines.append((line, own))
    return lines


def frames(text: str) -> list[Frame]:
    """Return the frames of the last traceback in a text, in its order: the innermost is the last."""
    found: list[Frame] = []
    for line in text.splitlines():
        if line.endswith("(most recent call last):"):
            found.clear()
        elif match := _FRAME.match(line):
            path = match["path"]
            found.append(Frame(path, int(match["line"]), match["name"].strip(), is_own(path)))
    return found


def place(text: str | None) -> Frame | None:
    """Return where an exception was raised: the innermost frame of the application, or else the innermost of all."""
    found = frames(text or "")
    return next((frame for frame in reversed(found) if frame.own), found[-1] if found else None)
