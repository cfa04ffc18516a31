"""A past attempt runs again in the foreground: one child, forked and watched as a mold does it, and no row.

The stage is a mold of one job without a supervisor: limits, deadline, stacks, out-of-memory evidence and the sweeping of what
is left behind are the mold's own. Other than there, output goes to the terminal, signals for this process are for the job, and
progress, results and the work on the database go to a folder of the replay's.
"""

from __future__ import annotations

import json
import os
import signal
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from . import channel, child, clock, descriptors, process, scratch, signals, stacks, titles
from .account import read_report
from .application import make_place
from .children import TERM
from .common import SIZE
from .current import current
from .job import Outcome
from .leftovers import Leftovers
from .memory import shared_memory
from .mold import Mold
from .options import LIMITS
from .places import Reader
from .safety import Watch
from .understudy import NotReady, ReplayFiles, Understudy

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .child import Message, Prepared
    from .children import Child
    from .records import Row
    from .runner import Runner

#: Seconds between two looks at the progress.
_SHOW_EVERY = 0.1
_NOT_READY = f"{NotReady.__module__}.{NotReady.__qualname__}"


class Screen(Protocol):
    """Where a replay is watched."""

    def write(self, data: bytes) -> None: ...
    def show(self, progress: dict[str, Any] | None) -> None: ...


@dataclass(frozen=True)
class Part:
    """What is replayed, and how."""

    row: Row
    #: The name of the task: the row's, unless it was renamed.
    task: str
    attempt: int
    #: Of this replay alone; exists.
    folder: str
    #: In seconds, where the task says nothing.
    grace: float
    result_limit: int
    file_limit: int
    exit_timeout: float
    allow_threads: bool
    #: Place, name and hash of each input file; place → path to take instead.
    inputs: Sequence[tuple[str, str, str]] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    pdb: bool = False
    #: No fork, for debuggers and profilers: without limits.
    here: bool = False

    @property
    def results(self) -> str:
        """Where output files are left."""
        return os.path.join(self.folder, "results")


@dataclass(frozen=True)
class Ended:
    """How a replay ended: the header of a mold's `ended`, the result as JSON text, and a signal that somebody sent."""

    facts: dict[str, Any]
    result: str
    interrupted: int = 0

    @property
    def outcome(self) -> Outcome:
        return Outcome(self.facts["outcome"])

    @property
    def not_ready(self) -> bool:
        """The task was not called at all."""
        return self.facts.get("error_type") == _NOT_READY

    @property
    def status(self) -> int:
        """The exit status of the command."""
        if self.interrupted or self.facts.get("error_type") == "KeyboardInterrupt":
            return 128 + (self.interrupted or signal.SIGINT)
        if self.not_ready:
            return 2
        if self.outcome is Outcome.CRASHED:
            name = str(self.facts.get("signal"))
            return 128 + (signal.Signals[name] if name in signal.Signals.__members__ else 0)
        return STATUSES[self.outcome]


#: Outcome → exit status; a crash ends as shells say it, 128 and the number of the signal.
STATUSES = {
    Outcome.DONE: 0,
    Outcome.RAISED: 1,
    Outcome.EXITED: 3,
    Outcome.TIMED_OUT: 4,
    Outcome.OVER_MEMORY: 5,
    Outcome.OVER_CPU: 5,
    Outcome.OUT_OF_MEMORY: 5,
    Outcome.REQUEUED: 6,
    Outcome.CANCELLED: 6,
    Outcome.LOST: 6,
}


def replay(runner: Runner, part: Part, screen: Screen) -> Ended:
    """Run it and say how it ended.

    Raises TargetError, ConfigError: the application cannot be forked from.
    """
    place = make_place(runner, runner.target or "", (), Watch(), part.allow_threads or part.here)
    task = runner.tasks[part.task]
    place.tasks = {part.task: Understudy(task, runner.url, part.folder, pdb=part.pdb)}
    place.result_limit, place.exit_timeout = part.result_limit, part.exit_timeout
    place.files = ReplayFiles(lambda: runner.storage, part.file_limit, part.results, part.inputs, part.files)
    progress = os.path.join(part.folder, "progress")
    os.mkdir(progress, 0o700)
    current.place = {"url": None, "rate": 20.0, "folder": progress, "runtime": part.folder, "prefix": ""}
    message = _job_of(part, task.policy() | json.loads(part.row.options or "{}")), part.row.arguments.encode()
    if part.here:
        return _here(place, message)
    return Stage(place, part, screen, Reader(current.place)).play(message)


def _job_of(part: Part, options: dict[str, Any]) -> dict[str, Any]:
    """Return the header of a `run` message, as the supervisor makes it."""
    row = part.row
    earlier = [
        one for one in row.attempts if one.attempt < part.attempt and one.outcome is not Outcome.REQUEUED
    ]
    grace = options.get("grace")
    job: dict[str, Any] = {
        "id": row.id,
        "task": part.task,
        "queue": row.queue,
        "attempt": part.attempt,
        "tries": len(earlier),
        "started_at": clock.utc().isoformat(),
        "grace": part.grace if grace is None else grace,
    }
    limits = {name: options[name] for name in LIMITS if options.get(name)}
    if part.here:
        limits = {name: value for name, value in limits.items() if name == "temporary_folder"}
    elif part.pdb:
        limits.pop("cpu_seconds", None)
    elif options.get("timeout") is not None:
        job["timeout"] = options["timeout"]
    if "temporary_folder" in limits:
        limits["temporary_folder"] = os.path.join(part.folder, "tmp")
    if limits:
        job["limits"] = limits
    if row.cursor is not None and part.attempt > 1:
        job["cursor"] = row.cursor
    return job


def _here(place: child.Place, message: Message) -> Ended:
    """Run it in this process."""
    stacks.report_stacks_to(2)
    # what a mold does for the processes that its jobs fork
    current.mold, current.commons = os.getppid(), shared_memory(SIZE).cast("d")
    message[0]["common"] = 0
    report = scratch.scratch_file("forkrunner-report")
    os.dup2(report, place.report_fd, inheritable=False)
    start = clock.monotonic()
    child.attempt(place, message[0], message[1], None)
    stacks.end_never()
    ran = clock.monotonic() - start
    header, body = read_report(scratch.contents(report))[1] or (
        {"outcome": "exited", "error_message": "there is no report"},
        b"",
    )
    return Ended({"ran": ran, **header}, body.decode("utf-8", "replace"))


class _Leftovers(Leftovers):
    def remove_folder(self, path: str | None) -> None:
        """Leave that to who has made the folder around it."""


class Stage(Mold):
    """A mold of one job, in the foreground."""

    LEFTOVERS = _Leftovers

    def __init__(self, place: child.Place, part: Part, screen: Screen, progress: Reader) -> None:
        # nobody is at the other end, which stays open
        link, _ = (end.detach() for end in socket.socketpair())
        process.adopt_orphans()
        super().__init__(link, place, "")
        self.part = part
        self.screen = screen
        self.progress = progress
        self.interrupts = signals.Interrupts()
        self.poll.watch(self.interrupts.fileno())
        self.interrupted = 0
        self.show_at = 0.0
        stacks.report_stacks_to(place.report_fd)
        #: Output for the terminal comes through here, so that it does not run into the bar; -1: it goes there by itself.
        self.relay, self.relay_end = -1, -1
        if not part.pdb and (os.isatty(1) or os.isatty(2)):
            self.relay, self.relay_end = map(place.reserved.move, os.pipe())
            os.set_blocking(self.relay, False)
            self.poll.watch(self.relay)

    def play(self, message: Message) -> Ended:
        self.start([message], clock.monotonic())
        self.run()
        inbox = channel.Inbox()
        inbox.feed(bytes(self.outgoing))
        for header, body in inbox:
            if header["kind"] == "ended":
                return Ended(header, body.decode("utf-8", "replace"), self.interrupted)
            if header["kind"] == "refused":
                raise OSError(header["error"])
        raise AssertionError("the job has no ending")

    def run(self) -> None:
        while self.children.busy:
            self.poll.wait(
                min(self.next_due(), self.show_at) - clock.monotonic()
            )  # the only line that blocks
            now = clock.monotonic()
            self.pass_on()
            self.heed(now)
            self.reap(now)
            self.observer.look(now)
            self.ladder.climb(now)
            self.show(now)
        self.pass_on()
        self.screen.show(None)

    # ------------------------------------------------------------------------------ the child

    def prepare(self, message: Message | None) -> Prepared | None:
        assert message is not None
        prepared = super().prepare(message)
        if prepared is None:
            return None
        _, output, report = prepared
        return (
            (message, titles.to_bytes(f"replay {message[0]['id']} {message[0]['task']}"), None),
            output,
            report,
        )

    def fork(self, prepared: list[Prepared]) -> list[int]:
        ((start, _, report),) = prepared
        os.dup2(report, self.place.report_fd, inheritable=False)
        child.flush_all()
        pid = process.fork()
        if pid == 0:
            if self.relay_end >= 0:
                for fd in (1, 2):
                    if os.isatty(fd):
                        os.dup2(self.relay_end, fd)
            if not self.part.pdb:  # as in a mold: there is nobody to answer
                os.dup2(self.null, 0)
            descriptors.line_buffered()
            child.main(self.place, start)
        return [pid]

    def release(self, dead: Child) -> None:
        super().release(dead)
        if self.relay_end >= 0:
            os.close(self.relay_end)
            self.relay_end = -1

    # --------------------------------------------------------------------------------- people

    def pass_on(self) -> None:
        """Write to the terminal what the job has written."""
        while self.relay >= 0:
            try:
                data = os.read(self.relay, 1 << 16)
            except BlockingIOError:
                return
            if not data:
                self.poll.forget(self.relay)
                os.close(self.relay)
                self.relay = -1
                return
            self.screen.write(data)

    def show(self, now: float) -> None:
        if now >= self.show_at:
            self.show_at = now + _SHOW_EVERY
            self.screen.show(self.progress.get(self.part.row.id))

    def heed(self, now: float) -> None:
        """Pass on what was meant to end us: Ctrl-C as KeyboardInterrupt at first, the ladder of a cancel after `grace`."""
        for number in self.interrupts.take():
            for busy in list(self.children.busy.values()):
                if number == signal.SIGINT and self.part.pdb:
                    process.kill(busy.pid, signal.SIGINT)
                elif number == signal.SIGINT and not self.interrupted:
                    self.interrupted = number
                    process.kill_group(busy.pid, signal.SIGINT)
                    self.children.condemn(busy, "cancelled", "interrupted", now, busy.grace)
                else:
                    self.interrupted = number
                    # without the other steps: whoever is deaf to a signal is not asked twice
                    self.children.condemn(busy, "cancelled", f"by {signal.Signals(number).name}", now)
                    busy.stage, busy.due = TERM, now
