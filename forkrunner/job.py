"""The words of a job: its states, how attempts end, and what follows from an ending.

No I/O and no clock here: the store writes what this file decides.

    enqueue ──a──▶ pending ──b──▶ busy ──c──▶ done
                     ▲ │           │ ├────d──▶ failed
                     │ └─────f─────┼─┴────g──▶ cancelled
                     └──────e──────┘
                     ◀──────h───────────────── done, failed, cancelled

    a  enqueue          Store.enqueue: the row is inserted, `run_at` says when it may start
    b  claim            Store.claim: `attempt` is counted up, `supervisor` is set
    c  finish           Store.finish: the attempt's outcome is `done`, `result` is set
    d  finish           Store.finish: no further try is due, `error` says why
    e  finish, release  Store.finish: another try at `run_at`, or requeued · Store.release: claimed, never started
    f  cancel           Store.cancel: nothing ran
    g  finish           Store.finish: a running attempt was cancelled
    h  retry            Store.retry: somebody asked for another run; `tries` and `crashes` start again at 0

pending    `supervisor` is None; `finished_at` is None
busy       `supervisor` and `started_at` are set; the row belongs to that supervisor while its lease lasts
done       `result` and `finished_at` are set, `error` is None
failed     `error` and `finished_at` are set
cancelled  `error` and `finished_at` are set
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any


class State(StrEnum):
    PENDING = "pending"
    BUSY = "busy"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


#: States that a job leaves only by `retry`.
ENDED = frozenset({State.DONE, State.FAILED, State.CANCELLED})

#: Arrow → (function, from, to); a test compares this with the diagram above.
TRANSITIONS: Mapping[str, tuple[str, frozenset[State], frozenset[State]]] = {
    "a": ("enqueue", frozenset(), frozenset({State.PENDING})),
    "b": ("claim", frozenset({State.PENDING}), frozenset({State.BUSY})),
    "c": ("finish", frozenset({State.BUSY}), frozenset({State.DONE})),
    "d": ("finish", frozenset({State.BUSY}), frozenset({State.FAILED})),
    "e": ("finish, release", frozenset({State.BUSY}), frozenset({State.PENDING})),
    "f": ("cancel", frozenset({State.PENDING}), frozenset({State.CANCELLED})),
    "g": ("finish", frozenset({State.BUSY}), frozenset({State.CANCELLED})),
    "h": ("retry", ENDED, frozenset({State.PENDING})),
}


class Outcome(StrEnum):
    """How an attempt ended. The mold decides it, `after` says what follows."""

    #: The task returned.
    DONE = "done"
    #: The task raised.
    RAISED = "raised"
    #: The process ended itself with an exit status: sys.exit, os._exit.
    EXITED = "exited"
    #: The process was ended by a signal that was not ours.
    CRASHED = "crashed"
    #: Ended by the mold at the task's `timeout`.
    TIMED_OUT = "timed_out"
    #: More memory of its own than the task's `memory`.
    OVER_MEMORY = "over_memory"
    #: More CPU time than the task's `cpu_seconds`.
    OVER_CPU = "over_cpu"
    #: Killed by the kernel's out-of-memory killer.
    OUT_OF_MEMORY = "out_of_memory"
    #: Ended because somebody cancelled the job.
    CANCELLED = "cancelled"
    #: Stopped on purpose before it was finished; runs again and counts as nothing.
    REQUEUED = "requeued"
    #: Its supervisor or mold died, so nobody saw how it ended.
    LOST = "lost"


#: Endings that say "this job may be dangerous", capped by `max_crashes` apart from `max_attempts`.
CRASHES = frozenset({Outcome.CRASHED, Outcome.OUT_OF_MEMORY, Outcome.LOST})


@dataclass(frozen=True, slots=True)
class Policy:
    """What a task declared about being run again."""

    #: How often the task may be tried before the job is failed; crashes are not counted here.
    max_attempts: int = 1
    #: After how many crashes (see CRASHES) the job is failed.
    max_crashes: int = 3
    #: Seconds before the second try, doubled for each further one; or one number per try.
    backoff: float | tuple[float, ...] = 10.0
    #: Longest wait between two tries, seconds.
    backoff_cap: float = 3600.0
    #: Never start it again once it was claimed, whatever happened.
    at_most_once: bool = False

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Policy:
        """Make one from a task's options as they come over a channel; others than its own are passed over."""
        known = {key: options[key] for key in cls.__dataclass_fields__ if options.get(key) is not None}
        if isinstance(known.get("backoff"), list):
            known["backoff"] = tuple(known["backoff"])
        return cls(**known)

    def delay(self, failures: int, jitter: float) -> float:
        """Seconds to wait after the `failures`-th failure; `jitter` in 0…1 spreads it by ± 25 %."""
        if isinstance(self.backoff, tuple):
            base = self.backoff[min(failures, len(self.backoff)) - 1] if self.backoff else 0.0
        else:
            # 2.0 ** 1024 overflows; the cap is reached long before
            base = self.backoff * 2.0 ** min(failures - 1, 60)
        return min(base, self.backoff_cap) * (0.75 + 0.5 * jitter)


@dataclass(frozen=True, slots=True)
class Next:
    """What becomes of a row after an attempt; `delay` in seconds is for `pending` only."""

    state: State
    tries: int
    crashes: int
    delay: float = 0.0


def after(
    outcome: Outcome,
    *,
    tries: int,
    crashes: int,
    policy: Policy,
    retry: bool = True,
    jitter: float | None = None,
) -> Next:
    """Decide what follows an ending: the one place that does.

    `tries` and `crashes` are those of the row before this attempt; `retry` is
    False when the task's `retry_for` or `give_up_on` ruled another try out.
    """
    if outcome is Outcome.DONE:
        return Next(State.DONE, tries + 1, crashes)
    if outcome is Outcome.CANCELLED:
        return Next(State.CANCELLED, tries, crashes)
    if outcome is Outcome.REQUEUED and not policy.at_most_once:
        return Next(State.PENDING, tries, crashes)
    jitter = random.random() if jitter is None else jitter
    if outcome in CRASHES:
        crashes += 1
        again, failures = crashes < policy.max_crashes, crashes
    else:
        tries += 1
        again, failures = retry and tries < policy.max_attempts, tries
    if policy.at_most_once or not again:
        return Next(State.FAILED, tries, crashes)
    # a lost attempt says nothing against the job: it need not wait
    delay = 0.0 if outcome is Outcome.LOST else policy.delay(failures, jitter)
    return Next(State.PENDING, tries, crashes, delay)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One ended attempt: a row of `forkrunner_attempts`. Sizes in bytes, times in seconds."""

    job_id: str
    #: The attempt's number, from 1; it is also the fence of every write about it.
    attempt: int
    outcome: Outcome
    supervisor: str | None = None
    host: str | None = None
    pid: int | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    #: Set when the process ended by exit.
    exit_status: int | None = None
    #: Name of the signal that ended the process, as `SIGSEGV`.
    signal: str | None = None
    error_type: str | None = None
    error_message: str | None = None
    traceback: str | None = None
    #: Python stacks of all threads, when it crashed or was killed by us.
    stacks: str | None = None
    #: The last lines of what it wrote to stdout and stderr.
    output_tail: str | None = None
    cpu_user_seconds: float | None = None
    cpu_system_seconds: float | None = None
    #: Its own peak, without the pages that it shared with the mold at the start.
    peak_memory_bytes: int | None = None
    task: str | None = None
    #: From when it was due, or given back, to when its process began.
    waited_seconds: float | None = None
    run_seconds: float | None = None
    #: Pages that it touched first, or copied; and those of them that were read from a disk.
    minor_faults: int | None = None
    major_faults: int | None = None
    #: How often it waited for something, and how often it was made to wait for others.
    voluntary_switches: int | None = None
    involuntary_switches: int | None = None
    #: Processes that it had started and that were killed when it had ended.
    leftover_processes: int | None = None
    #: How much it wrote to stdout and stderr, kept or not.
    output_bytes: int | None = None
    #: JSON list of what was done to end it by force, each `{"step": …, "after": seconds since its start, …}`.
    steps: str | None = None

    def sentence(self) -> str:
        """Say in one line how it ended, for an ending that was not `done`."""
        message = (self.error_message or "").strip().split("\n")[0]
        if self.outcome is Outcome.RAISED and self.error_type:
            return f"{self.error_type}: {message}" if message else self.error_type
        return f"{self.outcome.replace('_', ' ')}: {message}"


#: Begins the `error` of a job whose task has raised a UserError; nothing else does, since the types of exceptions that
#: are not Python's own are named with their modules.
_BY_USER_ERROR = "UserError: "


def user_sentence(text: str) -> str:
    """Return the `error` of a job that has failed by a UserError of this text."""
    return _BY_USER_ERROR + text


def user_error(error: str | None) -> str | None:
    """Return the text of the UserError behind a job's `error`: fit for users, word for word. None: it was none, or said nothing."""
    if error is None or not error.startswith(_BY_USER_ERROR):
        return None
    return error.removeprefix(_BY_USER_ERROR) or None


@dataclass(frozen=True, slots=True)
class File:
    """A file of a job: a row of `forkrunner_files`."""

    job_id: str
    #: Where it stands: `arguments.source`, `arguments.sources[1]`, `result`, `result[0]`.
    place: str
    #: What the storage has it under, hexadecimal.
    sha256: str
    #: Bytes.
    size: int
    #: For people only, and never a path.
    name: str
    #: As `text/plain`; of a result only.
    media_type: str | None = None
    #: Of a result: who knows it may download the file.
    token: str | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """A row that this supervisor has just marked busy: what a child needs to run it."""

    id: str
    task: str
    queue: str
    attempt: int
    tries: int
    crashes: int
    #: JSON object: parameter name → value.
    arguments: str
    #: JSON object of what the call overrides (`timeout`, `max_attempts`, …), or None.
    options: str | None
    created_at: datetime
    started_at: datetime
    #: Who holds it: the claimer, or for a row to be rescued the dead one.
    supervisor: str
    #: When it was due.
    run_at: datetime | None = None
    #: JSON text, as an earlier attempt left it at a safe point; None: from the beginning.
    cursor: str | None = None


@dataclass(frozen=True, slots=True)
class Ending:
    """An attempt together with what becomes of its row: what `Store.finish` writes.

    `attempt.job_id`, `.attempt` and `.supervisor` are the fence: the row is
    touched only while it is busy under exactly these.
    """

    attempt: Attempt
    next: Next
    task: str = ""
    #: JSON text, for `done`.
    result: str | None = None
    #: One sentence for people, for `failed`, `cancelled` and another try.
    error: str | None = None
    #: What it wrote, where `attempt.output_tail` has not room for all of it.
    output: str | None = None
    #: JSON text: where the next attempt goes on. None leaves what the row has.
    cursor: str | None = None
    #: Of the result.
    files: tuple[File, ...] = ()

    def consequence(self) -> str:
        """Say in words what becomes of the job."""
        if self.next.state is not State.PENDING:
            return str(self.next.state)
        return f"again in {self.next.delay:.1f} s" if self.next.delay else "runs again"


@dataclass(frozen=True, slots=True)
class Row:
    """A row of `forkrunner_jobs` as read back, whole."""

    id: str
    task: str
    queue: str
    state: State
    priority: int
    #: Not to be started before this moment.
    run_at: datetime
    created_at: datetime
    #: Of the last attempt; None while none has started.
    started_at: datetime | None
    finished_at: datetime | None
    #: JSON text of an object: parameter name → value.
    arguments: str
    result: str | None
    error: str | None
    options: str | None
    #: Number of the last attempt; 0 while none has started.
    attempt: int
    #: Attempts that counted against `max_attempts`.
    tries: int
    #: Attempts that counted against `max_crashes`.
    crashes: int
    supervisor: str | None
    #: When somebody asked a busy job to be cancelled.
    cancel_at: datetime | None
    cancel_reason: str | None
    #: Who asked first.
    cancel_actor: str | None
    #: Since when a running job is to stand still; the pause is over when the attempt is.
    paused_at: datetime | None
    #: JSON text: where the next attempt goes on; see `safe_point`. A done job has none.
    cursor: str | None
    attempts: tuple[Attempt, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class Wish:
    """What somebody wants of a running job: that it ends, or that it stands still."""

    id: str
    attempt: int
    cancel: bool
    reason: str | None
    actor: str | None
    paused: bool


@dataclass(frozen=True, slots=True)
class Standing:
    """How a job stands, for whoever watches it: the small part of its row, and its place in the queue."""

    id: str
    state: State
    #: Number of the last attempt; 0 while none has started.
    attempt: int
    run_at: datetime
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    #: Why it did not end well: for those who run it, not for its users.
    error: str | None
    #: How many jobs of its queue start before it, counted up to 1000; None unless it is pending.
    position: int | None
    #: Where its result can be downloaded, below the mount of the endpoint, if that is one file; see `filenames.address`.
    file: str | None = None


@dataclass(frozen=True, slots=True)
class New:
    """A row to be inserted by `Store.enqueue`; `delay` seconds from the database's now unless `run_at`."""

    id: str
    task: str
    queue: str
    arguments: str
    priority: int = 0
    delay: float = 0.0
    run_at: datetime | None = None
    options: str | None = None
    #: Of the arguments.
    files: tuple[File, ...] = ()


@dataclass(frozen=True, slots=True)
class SupervisorRow:
    """A row of `forkrunner_supervisors`: who holds a lease, and how to prove it dead on its own host."""

    id: str
    host: str
    #: /proc/sys/kernel/random/boot_id: another boot means every process of before is gone.
    boot_id: str
    #: Inode of the pid namespace: pids of another container are not ours to judge.
    pid_namespace: str
    pid: int
    #: Start time in clock ticks since boot: tells a process from a later one with the same pid.
    start_ticks: int
    target: str
    slots: int
    version: str
    #: JSON text of a list: its molds, as `Molds.picture` has them.
    molds: str | None = None
    started_at: datetime | None = None
    lease_until: datetime | None = None


#: How an attempt ended, for people; the order is that of the docs.
ENDINGS: Mapping[Outcome, str] = {
    Outcome.DONE: "the task returned",
    Outcome.RAISED: "the task raised, or its result was not JSON or too large, or no task has the name",
    Outcome.EXITED: "the process ended itself: `sys.exit`, `os._exit`",
    Outcome.CRASHED: "the process was ended by a signal that was not ours; with its stacks for SIGSEGV, ABRT, BUS, FPE, ILL",
    Outcome.TIMED_OUT: "it ran longer than `timeout` and was killed",
    Outcome.OVER_MEMORY: "`MemoryError` under the task's `memory` limit; or with all that it started it had more, and was killed",
    Outcome.OVER_CPU: "SIGXCPU at the task's `cpu_seconds`; or with all that it started it used more, and was killed",
    Outcome.OUT_OF_MEMORY: "SIGKILL by the kernel's out-of-memory killer: its log names the pid, or a counter has moved",
    Outcome.CANCELLED: "somebody cancelled the job: it left at a safe point, or was killed",
    Outcome.REQUEUED: "it left at a safe point; or was killed because its supervisor stopped or could not renew its lease",
    Outcome.LOST: "its mold or supervisor died or was killed; or its lease was over and another took it back",
}


def ending_table() -> str:
    """Return the outcomes as a Markdown table: how an attempt ended, and what `after` makes of its job."""
    policy = Policy(max_attempts=2, max_crashes=2)
    rows = ["| outcome | what happened | counts as | the job is then |", "|---|---|---|---|"]
    for outcome, meaning in ENDINGS.items():
        then = after(outcome, tries=0, crashes=0, policy=policy, jitter=0.5)
        kind, limit = (
            ("try", "max_attempts") if then.tries else ("crash", "max_crashes") if then.crashes else ("–", "")
        )
        words = str(then.state)
        if then.state is State.PENDING:
            words += (
                " again "
                + ("after `backoff`" if then.delay else "at once")
                + (f"; `failed` at `{limit}`" if limit else "")
            )
        rows.append(f"| `{outcome}` | {meaning} | {kind} | {words} |")
    return "\n".join(rows)
