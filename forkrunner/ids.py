"""Ids of jobs: UUIDv7s, made by whoever makes the job, so that it has its id before it is stored.

They sort by the time of their making and are safe to put in a URL, a file name and a shell.
"""

from __future__ import annotations

import os
import re
from _thread import allocate_lock

from . import clock

#: How an id is written: lower case, with its hyphens.
PATTERN = "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_ID = re.compile(PATTERN)


def is_id(text: str) -> bool:
    """Say whether this could be the id of a job; one in upper case could not."""
    return _ID.fullmatch(text) is not None


class _Sequence:
    """The last id that this process has made."""

    __slots__ = ("last", "lock")

    def __init__(self) -> None:
        self.lock = allocate_lock()
        self.last = 0


#: By pid: a child of a fork begins anew, also when another thread held the lock at the fork.
_sequences: dict[int, _Sequence] = {}


def first_after(seconds: float) -> str:
    """Return what sorts before every id that is made from that moment on, seconds since 1970."""
    text = f"{int(seconds * 1000):012x}"
    return f"{text[:8]}-{text[8:12]}-7000-8000-000000000000"


def new_id() -> str:
    """Make a UUIDv7 (RFC 9562): milliseconds since 1970, then 74 random bits.

    Those of one process sort in the order of their making: within a millisecond, or while the clock stands
    behind, the random part grows by a random step (method 2 of the RFC). Safe in threads and after forks.
    """
    pid = os.getpid()
    # setdefault is atomic: two threads get the same
    sequence = _sequences.get(pid) or _sequences.setdefault(pid, _Sequence())
    # the top bit stays free for the steps
    fresh = int(clock.wall() * 1000) << 74 | int.from_bytes(os.urandom(10)) >> 7
    with sequence.lock:
        if fresh >> 74 <= sequence.last >> 74:
            # an overflow carries into the milliseconds, which is what the RFC wants
            fresh = sequence.last + 1 + int.from_bytes(os.urandom(4))
        sequence.last = fresh
    milliseconds, random = fresh >> 74, fresh & (1 << 74) - 1
    number = milliseconds << 80 | 0x7 << 76 | (random >> 62) << 64 | 0b10 << 62 | random & (1 << 62) - 1
    text = f"{number:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
