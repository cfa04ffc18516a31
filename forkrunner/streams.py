"""A job's standard output and error: streams that know whether anything was written to them.

At its end a child flushes both, and most jobs have printed nothing. To flush two empty streams is the dearest thing that such
a child does, since it touches some twenty pages that nothing else in it needs, and each of them is copied.
"""

from __future__ import annotations

import io
import sys

from .current import current

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Stream(io.TextIOWrapper):
    """A standard stream that notes in `current` that it is used, before it is."""

    #: What lies below it was never given away: nothing is written there without our knowing.
    closed_in = True

    def write(self, text: str) -> int:
        current.printed = True
        return super().write(text)

    @property
    def buffer(self) -> Any:
        self._give_away()
        return super().buffer

    def detach(self) -> Any:
        self._give_away()
        return super().detach()

    def _give_away(self) -> None:
        self.closed_in = False
        current.printed = True


def install() -> None:
    """Put such streams in the place of Python's own; before the application is imported, which may keep them."""
    streams = []
    for fd, stream in ((1, sys.stdout), (2, sys.stderr)):
        if stream is None:  # its descriptor was closed
            return
        stream.flush()
        # what stood there before has the descriptor too
        raw = io.FileIO(fd, "w", closefd=False)
        # as the interpreter names them
        raw.name = stream.name
        # PYTHONUNBUFFERED: then nothing may be held back at all
        through = getattr(stream, "write_through", False)
        below: Any = raw if through else io.BufferedWriter(raw)
        ours = Stream(below, stream.encoding, stream.errors, line_buffering=True, write_through=through)
        ours.mode = "w"  # type: ignore[misc]
        streams.append(ours)
    sys.stdout, sys.stderr = streams
    sys.__stdout__, sys.__stderr__ = streams  # type: ignore[misc]


def watch() -> None:
    """Know from now on whether something is written; at this moment nothing is held back."""
    if all(isinstance(stream, Stream) and stream.closed_in for stream in (sys.stdout, sys.stderr)):
        current.stdout, current.stderr = sys.stdout, sys.stderr
        current.printed = False
