"""The application that scripts/bench.py runs: as small as one can be."""

from __future__ import annotations

import time

from forkrunner import Runner

runner = Runner()


@runner.task
def noop() -> None:
    pass


@runner.task
def stamp() -> float:
    return time.monotonic()


_leaks: list[bytes] = []


@runner.task
def leak(size: int) -> None:
    _leaks.append(b"\x01" * size)
