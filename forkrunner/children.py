"""The mold's memory of its children: who runs what, until when, how far a killing has got.

No system call is made here, so tests fork nothing: `overdue` says what to do, the mold does it.
The ladder of an ending by force, one step at a time:

    RUNNING ──(deadline, cancel, stop)──▶ DUMP ──0.2 s──▶ TERM ──grace──▶ KILL ──1 s──▶ KILL …

Always true between two turns of the mold's loop:
(1) a pid is in at most one of `spares` and `busy`;
(2) a busy child has a job, and leaves `busy` only by `died`;
(3) once a killing has begun its reason stays: a late outcome does not change the verdict.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

RUNNING, DUMP, TERM, KILL = range(4)

#: Seconds that faulthandler gets for printing the stacks before TERM may end the process.
DUMP_TIME = 0.2
#: A process that survives KILL sits in the kernel; it is told again this often, seconds.
AGAIN = 1.0
FOREVER = float("inf")


class Child:
    """One forked process: a spare at first, then one attempt of one job."""

    __slots__ = (
        "deadline",
        "due",
        "grace",
        "job",
        "killed_by_us",
        "output",
        "pid",
        "pipe",
        "report",
        "stage",
        "started",
        "started_wall",
        "why",
    )

    def __init__(self, pid: int, pipe: int, output: int, report: int) -> None:
        self.pid = pid
        #: File descriptors of the mold's ends: job frame down, output and report files.
        self.pipe, self.output, self.report = pipe, output, report
        #: Header of the `run` message; None in a spare.
        self.job: dict[str, Any] | None = None
        self.started = 0.0
        self.started_wall = 0.0
        #: Monotonic time at which the ladder begins.
        self.deadline = FOREVER
        #: When the next step is due.
        self.due = FOREVER
        self.grace = 5.0
        self.stage = RUNNING
        #: Outcome word of the killing and a sentence, once it has begun.
        self.why: tuple[str, str] | None = None
        self.killed_by_us = False


class Children:
    def __init__(self) -> None:
        self.spares: list[Child] = []
        self.busy: dict[int, Child] = {}

    def __len__(self) -> int:
        return len(self.spares) + len(self.busy)

    def __iter__(self) -> Iterator[Child]:
        yield from self.busy.values()
        yield from self.spares

    def pids(self) -> set[int]:
        return {child.pid for child in self}

    def start(self, child: Child, job: dict[str, Any], now: float, wall: float) -> None:
        """Note that `child` runs `job` from now on; `timeout` and `grace` are in the job's header."""
        child.job = job
        child.started, child.started_wall = now, wall
        timeout = job.get("timeout")
        child.deadline = child.due = FOREVER if timeout is None else now + timeout
        child.grace = job.get("grace", child.grace)
        self.busy[child.pid] = child

    def find(self, job_id: str, attempt: int) -> Child | None:
        for child in self.busy.values():
            if child.job and child.job["id"] == job_id and child.job["attempt"] == attempt:
                return child
        return None

    def condemn(self, child: Child, outcome: str, sentence: str, now: float) -> None:
        """Begin the ladder now, unless it has begun: the first reason counts. Keeps (3)."""
        if child.why is None:
            child.why = (outcome, sentence)
            child.due = now

    def overdue(self, now: float) -> list[tuple[Child, int]]:
        """Say which step each child is due for, and move it there."""
        steps = []
        for child in self.busy.values():
            if child.due > now:
                continue
            if child.why is None:
                timeout = child.job["timeout"] if child.job else 0
                child.why = ("timed_out", f"ran longer than its timeout of {timeout:g} s")
            child.stage = min(child.stage + 1, KILL)
            child.due = now + (DUMP_TIME, child.grace, AGAIN)[child.stage - 1]
            steps.append((child, child.stage))
        return steps

    def next_due(self) -> float:
        return min((child.due for child in self.busy.values()), default=FOREVER)

    def died(self, pid: int) -> Child | None:
        """Forget a dead child; None if the pid was none of ours (a leftover of some job)."""
        child = self.busy.pop(pid, None)
        if child is None:
            for i, spare in enumerate(self.spares):
                if spare.pid == pid:
                    return self.spares.pop(i)
        return child
