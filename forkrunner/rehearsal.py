"""The way of a child, gone many times in the mold before the first fork, on a stage where nothing has an effect."""

from __future__ import annotations

import os

from . import titles
from .child import Place, fork_each
from .current import current


def rehearse(place: Place) -> None:
    """Do in the mold, many times, what each child does once; on a stage where it has no effect.

    The interpreter fills caches in the code that it runs often: filled before the fork
    they need not be filled, in pages copied for that, by each child.
    """
    stage = object.__new__(Place)
    for name in Place.__slots__:
        setattr(stage, name, getattr(place, name))
    stage.mold, stage.base, stage.reconnect = os.getppid(), 1 << 20, ()
    stage.report_fd = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    stage.after_fork = stage.before_exit = ()
    stage.exit = _no_exit
    start = ({"id": "", "task": "rehearsal", "attempt": 0}, b"{}"), titles.to_bytes("rehearsal"), _nothing
    fork_each(stage, [(start, -1, -1)] * 30, [], _no_fork, _no_dup)
    os.close(stage.report_fd)
    current.job = None


def _no_fork() -> int:
    """Be in the child."""
    return 0


def _no_dup(*fds: object) -> None:
    pass


def _no_exit(status: int) -> None:
    if status:
        raise AssertionError("the rehearsal failed")


def _nothing() -> None:
    """Be a task."""
