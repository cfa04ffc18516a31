"""The mold's memory of its children: who runs what, until when, how far a killing has got.

No system call is made here, so tests fork nothing: `overdue` says what to do, `ladder.py` does it.
The ladder of an ending by force, one step at a time:

    RUNNING ──(deadline, cancel, stop)──▶ DUMP ──0.2 s──▶ TERM ──grace──▶ KILL ──1 s──▶ KILL …

Before it stands NEAR, once: the deadline is near, and a safe point may take the job out. No time passes for a
child that is paused.

Always true between two turns of the mold's loop:
(1) a pid is in at most one of `spares` and `busy`;
(2) a busy child has a job, and leaves `busy` only by `died`;
(3) once a killing has begun its reason stays: a late outcome does not change the verdict, and one that was on record
    before it is not changed by it.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

RUNNING, DUMP, TERM, KILL = range(4)
NEAR = -1

#: Seconds that faulthandler gets for printing the stacks before TERM may end the process.
DUMP_TIME = 0.2
#: A process that survives KILL sits in the kernel; it is told again this often, seconds.
AGAIN = 1.0
FOREVER = float("inf")
#: How old a job is when its programs are looked at for the first time, seconds.
WEIGH_FROM = 0.1
#: Limits that the mold enforces by looking.
WATCHED = frozenset({"memory", "cpu_seconds"})


class Child:
    """One forked process: a spare at first, then one attempt of one job."""

    __slots__ = (
        "answered",
        "asked",
        "cpu",
        "cut",
        "deadline",
        "due",
        "family",
        "grace",
        "group_killed",
        "inherited",
        "job",
        "leftover",
        "near_at",
        "output",
        "paused_at",
        "paused_for",
        "peak",
        "pid",
        "pipe",
        "ran",
        "report",
        "said",
        "stage",
        "started",
        "started_wall",
        "steps",
        "told",
        "weigh_at",
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
        #: When it is told that its deadline is near.
        self.near_at = FOREVER
        #: Since when it stands still, None if it runs; and for how long it did before, seconds.
        self.paused_at: float | None = None
        self.paused_for = 0.0
        #: When its programs are looked at; most jobs have ended by then.
        self.weigh_at = FOREVER
        #: Something about it is written on the board.
        self.asked = False
        #: Bytes in its report file when the ladder began: a report that ends behind them is late.
        self.said = FOREVER
        #: Its report was there, whole and not late: known when it has ended.
        self.answered = False
        #: What was done to end it by force, and when; None while nothing was.
        self.steps: list[dict[str, Any]] | None = None
        #: The supervisor knows which process it is.
        self.told = False
        #: The middle of its output was given up.
        self.cut = False
        #: Processes of its own making that had to be killed.
        self.leftover = 0
        #: What it had started when it was asked to end, which may flee from it.
        self.family: frozenset[int] = frozenset()
        #: The kernel has killed in its control group, which had used so many bytes; 0 if not.
        self.group_killed = 0
        #: Memory that it began with, bytes; known where it has a limit of memory.
        self.inherited = 0
        #: Memory of its own and of what it started, as sampled, and in the end as the kernel says, bytes.
        self.peak = 0
        #: CPU time and time on the clock, when it has ended, seconds.
        self.cpu = self.ran = 0.0

    def note(self, step: str, now: float, **details: Any) -> None:
        """Write down what was done to end it by force."""
        if self.steps is None:
            self.steps = []
        self.steps.append({"step": step, "after": round(now - self.started, 3), **details})


def margin(timeout: float, grace: float) -> float:
    """Say how long before a deadline it is near: a tenth of the time, or `grace`, but never its first half."""
    return min(max(timeout / 10, grace), timeout / 2)


class Children:
    def __init__(self) -> None:
        self.spares: list[Child] = []
        self.busy: dict[int, Child] = {}
        #: Those of the busy ones whose memory and CPU time are looked at.
        self.watched: dict[int, Child] = {}
        #: How many of the busy ones take no slot: they send mail.
        self.beside = 0

    def __len__(self) -> int:
        return len(self.spares) + len(self.busy)

    def __iter__(self) -> Iterator[Child]:
        yield from self.busy.values()
        yield from self.spares

    @property
    def in_slots(self) -> int:
        return len(self.busy) - self.beside

    def pids(self) -> set[int]:
        return {child.pid for child in self}

    def start(self, child: Child, job: dict[str, Any], now: float, wall: float) -> None:
        """Note that `child` runs `job` from now on; `timeout` and `grace` are in the job's header."""
        child.job = job
        child.started, child.started_wall = now, wall
        child.weigh_at = now + WEIGH_FROM
        child.grace = job.get("grace", child.grace)
        if "timeout" in job:
            child.deadline = now + job["timeout"]
            child.due = child.near_at = child.deadline - margin(job["timeout"], child.grace)
        self.busy[child.pid] = child
        if "beside" in job:
            self.beside += 1
        if "limits" in job and not WATCHED.isdisjoint(job["limits"]):
            self.watched[child.pid] = child

    def find(self, job_id: str, attempt: int) -> Child | None:
        for child in self.busy.values():
            if child.job and child.job["id"] == job_id and child.job["attempt"] == attempt:
                return child
        return None

    def condemn(self, child: Child, outcome: str, sentence: str, now: float, wait: float = 0.0) -> None:
        """Begin the ladder after `wait` seconds, or at its deadline; the first reason counts. Keeps (3)."""
        if child.why is None:
            child.due = min(now + wait, child.deadline)
            self._decide(child, outcome, sentence, now)

    def pause(self, child: Child, now: float) -> bool:
        """Let no time pass for a child; False if it is paused already, or is being ended."""
        if child.why is not None or child.paused_at is not None:
            return False
        child.paused_at, child.due = now, FOREVER
        return True

    def resume(self, child: Child, now: float) -> bool:
        """Let its time go on: what was left of it at the pause is left now; False if it was not paused."""
        if child.paused_at is None:
            return False
        pause, child.paused_at = now - child.paused_at, None
        child.paused_for += pause
        child.deadline += pause
        if child.near_at != FOREVER:
            child.near_at += pause
        child.due = min(child.near_at, child.deadline)
        return True

    def _decide(self, child: Child, outcome: str, sentence: str, now: float) -> None:
        child.why = (outcome, sentence)
        child.note(outcome, now, detail=sentence)

    def overdue(self, now: float) -> list[tuple[Child, int]]:
        """Say which step each child is due for, and move it there."""
        steps = []
        for child in self.busy.values():
            if child.due > now:
                continue
            if child.why is None and child.near_at <= now < child.deadline:
                child.near_at, child.due = FOREVER, child.deadline
                steps.append((child, NEAR))
                continue
            if child.why is None:
                timeout = child.job["timeout"] if child.job else 0
                self._decide(child, "timed_out", f"ran longer than its timeout of {timeout:g} s", now)
            child.stage = min(child.stage + 1, KILL)
            child.due = now + (DUMP_TIME, child.grace, AGAIN)[child.stage - 1]
            steps.append((child, child.stage))
        return steps

    def next_due(self) -> float:
        return min((child.due for child in self.busy.values()), default=FOREVER)

    def died(self, pid: int) -> Child | None:
        """Forget a dead child; None if the pid was none of ours (a leftover of some job)."""
        child = self.busy.pop(pid, None)
        if self.beside and child is not None and child.job and "beside" in child.job:
            self.beside -= 1
        if self.watched:
            self.watched.pop(pid, None)
        if child is None:
            for i, spare in enumerate(self.spares):
                if spare.pid == pid:
                    return self.spares.pop(i)
        return child
