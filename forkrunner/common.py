"""What the processes of one job have in common as they say how far it is: a few numbers, in memory that no fork copies.

The mold maps it for all of its jobs before the first fork, so that processes which a job forks find each other, whichever of
them speaks first, and a job that says nothing pays for none of it. A job has as its number the descriptor of its output in
the mold: no other living child has that. The mold wipes its place when it is dead.

    told        1: something was said
    due         when the next word is due, monotonic seconds
    spent       seconds for which processes of the job have waited for words
    trouble     1: the last word found nobody to take it
    sent        how far the bar is that was sent, + 1
    far…        how far each process is, + 1, by its pid; 0: it has not said so

All are written without a lock. A place of `far` has one writer, but for pids that are far apart; of two that write one
of the others at once one is forgotten: a word more is sent than should be, or a wait of milliseconds is not counted.
"""

from __future__ import annotations

import os

from . import clock
from .current import current

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

TOLD, DUE, SPENT, TROUBLE, SENT = range(5)
_FAR, _NUMBERS = 8, 128
#: Bytes of one job, and of all; what is never touched takes no memory.
SIZE = _NUMBERS * 8
SIZE_OF_ALL = SIZE << 14


class Commons:
    """The mold's side: the places of all jobs."""

    def __init__(self, memory: memoryview) -> None:
        self.memory = memory.cast("d")
        current.commons = self.memory

    def forget(self, number: int) -> bool:
        """Wipe the place of a job that is dead; say whether something was said there."""
        at = number * _NUMBERS
        if at >= len(self.memory) or not self.memory[at]:
            return False
        self.memory[at : at + _NUMBERS] = memoryview(bytes(SIZE)).cast("d")
        return True


def numbers_of_this_job() -> memoryview[float]:
    """Return the numbers of the job that this process belongs to; some of its own where no mold has made any."""
    commons, at = current.commons, _place(current.job)
    if commons is None or at is None:
        from .memory import shared_memory

        return shared_memory(SIZE).cast("d")
    return commons[at : at + _NUMBERS]


def was_told() -> bool:
    """Say whether a process of this job has said something."""
    commons, at = current.commons, _place(current.job)
    return commons is not None and at is not None and commons[at + TOLD] != 0.0


def noted(fraction: object) -> bool:
    """Note how far this process is, if another of the job has found nobody to take a word a moment ago; else return False."""
    commons, at = current.commons, _place(current.job)
    if commons is None or at is None or not commons[at + TROUBLE] or clock.monotonic() >= commons[at + DUE]:
        return False
    at += place_of_this_process()
    try:
        # NaN is not more than anything
        commons[at] = max(commons[at], min(max(float(fraction), 0.0), 1.0) + 1.0)  # type: ignore[arg-type]
    except Exception:  # noqa: BLE001 - whatever it is, it is no reason to fail the job
        pass
    return True


def _place(job: dict[str, Any] | None) -> int | None:
    commons = current.commons
    if commons is None or job is None or "common" not in job:
        return None
    at: int = job["common"] * _NUMBERS
    return at if at < len(commons) else None


def place_of_this_process() -> int:
    """Return where this process writes how far it is."""
    return _FAR + os.getpid() % (_NUMBERS - _FAR)


def farthest(numbers: memoryview[float]) -> float | None:
    """Return how far the bar is, by all that was said; None if nobody said so."""
    far: float = max(numbers[SENT], *numbers[_FAR:])
    return far - 1.0 if far else None


def begin_anew(numbers: memoryview[float]) -> None:
    """Put the bar where it was before anybody said how far it is."""
    numbers[SENT] = 0.0
    numbers[_FAR:] = memoryview(bytes(SIZE - _FAR * 8)).cast("d")
