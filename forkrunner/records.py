"""What goes into the tables and comes out of them, as plain records: jobs, attempts, claims, wishes, supervisors.

The states and outcomes in them, and what follows from an ending, are in job.py. Sizes are bytes, times are seconds or aware
moments in UTC.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from .job import Next, Outcome, State

# Nobody changes any of these. The three that a supervisor makes for each job are not frozen all the same: that would make
# them three times as dear.

#: Id of a job and number of its attempt.
Key = tuple[str, int]


@dataclass(slots=True)
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
    #: The most that it had beyond what it shared with the mold at the start; or that the programs which it ran had
    #: together, as far as they were seen, if that is more.
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

    @property
    def output_is_known(self) -> bool:
        """What a lost attempt wrote is gone with its mold or supervisor, unless the supervisor had it too."""
        return self.outcome is not Outcome.LOST or self.output_bytes is not None

    def sentence(self) -> str:
        """Say in one line how it ended, for an ending that was not `done`."""
        message = (self.error_message or "").strip().split("\n")[0]
        if self.outcome is Outcome.RAISED and self.error_type:
            return f"{self.error_type}: {message}" if message else self.error_type
        return f"{self.outcome.replace('_', ' ')}: {message}"


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


@dataclass(slots=True)
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
class Notice:
    """A mail that is due because an attempt has ended; `mails.py` decides on it."""

    #: The mail's id, and that of the job that will send it; used if no mail of the same fingerprint is open.
    id: str
    #: failure, attempt or success.
    kind: str
    #: What fails alike has the same.
    fingerprint: str
    task: str
    #: How it ended, in one line.
    reason: str
    #: None: as the settings say when it is sent.
    recipients: tuple[str, ...] | None
    #: Seconds between two mails of one fingerprint.
    interval: float
    #: Most mails in an hour.
    cap: int
    #: JSON: options of the job that sends it.
    options: str


@dataclass(frozen=True, slots=True)
class Mail:
    """A row of `forkrunner_mails`."""

    id: str
    kind: str
    fingerprint: str
    task: str
    reason: str
    #: JSON list; an empty one: as the settings say.
    recipients: str
    job_id: str
    attempt: int
    last_job_id: str
    last_attempt: int
    #: How many attempts it tells of.
    count: int
    created_at: datetime
    last_at: datetime
    due_at: datetime
    told_in: str | None
    sealed_at: datetime | None
    sent_at: datetime | None
    #: JSON list: those for whom a server has taken it.
    delivered: str | None


@dataclass(slots=True)
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
    #: A mail to be made in the same transaction, if the job is then in the state that `next` says.
    notice: Notice | None = None

    @property
    def key(self) -> Key:
        """Which attempt it ends."""
        return self.attempt.job_id, self.attempt.attempt

    def consequence(self, became: State) -> str:
        """Say in words what becomes of the job, which is now in this state: a cancel wins over `next`."""
        if became is not State.PENDING:
            return str(became)
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
    #: How many jobs start before it, counted up to 1000; None unless it is pending and due.
    position: int | None
    #: When it may start; None unless it is pending and not due yet.
    due_at: datetime | None = None
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
    #: JSON text: its stage, its molds, and its queues if it does not take from all, as `Renewal.picture` has them.
    molds: str | None = None
    started_at: datetime | None = None
    lease_until: datetime | None = None
