"""USR2: how a supervisor becomes a new release of itself, with the same pid, molds and running jobs.

    USR2 ─▶ trial: the new code, in a process of its own, reads what it would be given ──no──▶ told; nothing has changed
                                 │ yes
                                 ▼
            exec: signals wait · the state lies in a nameless file · channels and life lock stay open
                                 │
                                 ▼
            adopt: the new image takes it up where the old one was; unread bytes, unwritten endings and all

The molds do not notice: the kernel's tie (PDEATHSIG) is to the process, not to its program. What a crash between
exec and adopt would lose is what a killed supervisor loses, and rescued as that; the trial is there to prevent it.

The file: a line with its version, length and checksum, then the state as MessagePack. A field that is added later
needs a default, and what it holds is not to be needed; else the version is counted up, and older ones are refused.
"""

from __future__ import annotations

import os
import sys
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from . import __version__, clock, process, scratch
from .attempts import Running
from .errors import HandoverError, StoreUnavailable
from .internal import MAIL
from .lease import Lease
from .link import MoldLink
from .molds import FOREVER, Stage
from .places import place as progress_place
from .records import Claim, Ending
from .store import Store
from .witness import Witness

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .config import Settings
    from .supervisor import Supervisor

VERSION = 1
#: Names the descriptor of the state for the process that is to read it.
VARIABLE = "FORKRUNNER_HANDOVER"
#: How long the trial may take, seconds.
_TRIAL = 60.0


class MoldState(msgspec.Struct):
    place: int
    generation: int
    stage: Stage
    started: float
    busy: int
    tasks: dict[str, dict[str, Any]]
    pid: int
    fd: int
    #: Of the channel: what came and is no whole message yet, what is still to be sent.
    unread: bytes
    unsent: bytes
    jobs: int = 0
    up: float = FOREVER
    #: The mold's end of the channel, and how many bytes it was told; -1: from a release that did not keep it.
    theirs: int = -1
    told: int = 0
    queues: bool = False


class PlaceState(msgspec.Struct):
    target: str
    due: float
    young_deaths: int
    tasks: dict[str, dict[str, Any]]


class RunningState(msgspec.Struct):
    claim: Claim
    options: dict[str, Any]
    #: Generation of its mold.
    mold: int
    cancelling: bool
    paused: bool = False
    #: Of what its mold was told, where this job ends.
    told: int = 0
    #: What its mold has told of its process.
    witness: dict[str, Any] | None = None


class State(msgspec.Struct):
    """All that a supervisor knows and could not find out again."""

    release: str
    #: Where its jobs and its files are; the new image must come to the same.
    home: str
    targets: list[str]
    #: What the application sets in its code.
    code: dict[str, Any]
    lease_id: str
    lease_ends: float
    lock: int
    generation: int
    places: list[PlaceState]
    molds: list[MoldState]
    running: list[RunningState]
    endings: list[Ending]
    ended_count: int
    quiet: bool
    rescue_at: float
    away_since: float | None
    #: When the old image ended, monotonic.
    at: float
    #: Jobs among the endings whose progress is to be cleared away.
    shown: set[str] = set()


class Given(NamedTuple):
    state: State
    #: Only to be looked at: nothing of it is ours.
    is_trial: bool


# --------------------------------------------------------------------------------- the file


def pack(state: State) -> bytes:
    body = msgspec.msgpack.encode(state)
    return b"forkrunner handover %d %d %08x\n%b" % (VERSION, len(body), zlib.crc32(body), body)


def unpack(data: bytes) -> State:
    """Read a state.

    Raises:
        HandoverError: it is of another version, or not whole.
    """
    line, _, body = data.partition(b"\n")
    words = line.decode("ascii", "replace").split()
    if words[:2] != ["forkrunner", "handover"] or len(words) != 5:
        raise HandoverError(f"expected the state of a supervisor, got {line[:40]!r}")
    if words[2] != str(VERSION):
        raise HandoverError(
            f"the running supervisor hands over in version {words[2]}, this one ({__version__}) takes"
            f" {VERSION}: stop and start it instead"
        )
    if words[3:] != [str(len(body)), f"{zlib.crc32(body):08x}"]:
        raise HandoverError("the state of the running supervisor is damaged: its checksum does not fit")
    try:
        return msgspec.msgpack.decode(body, type=State)
    except msgspec.ValidationError as error:
        raise HandoverError(
            f"the state of the running supervisor does not fit this release: {error}"
        ) from None


def given() -> Given | None:
    """Return what this process was started with, and forget it; None at an ordinary start.

    Raises:
        HandoverError: as `unpack` does.
    """
    text = os.environ.pop(VARIABLE, None)
    if text is None:
        return None
    word, _, number = text.rpartition(":")
    try:
        data = scratch.contents(int(number))
        os.close(int(number))
    except (ValueError, OSError):
        raise HandoverError(f"{VARIABLE}: expected an open descriptor, got {text!r}; do not set it") from None
    return Given(unpack(data), word == "trial")


def _file(state: State) -> int:
    fd = scratch.scratch_file("forkrunner-handover")
    data = pack(state)
    while data:
        data = data[os.write(fd, data) :]
    return fd


# ---------------------------------------------------------------------------- from, and into


def home(settings: Settings) -> str:
    """Name the database and the folder of a supervisor, whatever other names they have."""
    return str(progress_place(settings)["runtime"])


def gather(supervisor: Supervisor) -> State:
    """Note all that the next image needs; nothing is changed by it."""
    molds, lease = supervisor.molds, supervisor.lease
    return State(
        release=__version__,
        home=home(supervisor.settings),
        targets=[place.target for place in molds.places],
        code=supervisor.hearing.code,
        lease_id=lease.id,
        lease_ends=lease.ends,
        lock=lease.lock.fd,
        generation=molds.generation,
        places=[
            PlaceState(place.target, place.due, place.young_deaths, place.tasks) for place in molds.places
        ],
        molds=[
            MoldState(
                place=molds.places.index(mold.place),
                generation=mold.generation,
                stage=mold.stage,
                started=mold.started,
                busy=mold.busy,
                tasks=mold.tasks,
                pid=mold.link.pid,
                fd=mold.link.fileno(),
                unread=mold.link.unread,
                unsent=mold.link.unsent,
                jobs=mold.jobs,
                up=mold.up,
                theirs=mold.link.theirs,
                told=mold.link.told,
                queues=mold.queues,
            )
            for mold in molds
        ],
        running=[
            RunningState(
                run.claim,
                run.options,
                run.mold.generation,
                run.cancelling,
                run.paused,
                run.told,
                run.witness.told if run.witness is not None else None,
            )
            for run in supervisor.attempts.running.values()
        ],
        endings=list(supervisor.attempts.endings),
        ended_count=supervisor.attempts.ended_count,
        quiet=supervisor.orders.quiet,
        rescue_at=supervisor.renewal.rescue_at,
        away_since=supervisor.outage.since,
        at=clock.monotonic(),
        shown=supervisor.attempts.shown,
    )


def rehearse(state: State, settings: Settings, targets: Iterable[str]) -> None:
    """In the trial: do what `adopt` would do, as far as it changes nothing.

    Raises:
        ForkrunnerError: it would fail.
    """
    for what, ours, theirs in (
        ("the database or the runtime folder", home(settings), state.home),
        ("the applications", list(targets), state.targets),
    ):
        if ours != theirs:
            raise HandoverError(f"{what} would be another: {ours}, now {theirs}; stop and start it instead")
    store = open_store(settings)
    try:
        store.check_schema()
    except StoreUnavailable:
        pass  # that is not the new code's fault, and `adopt` does not need it
    finally:
        store.close()


def open_store(settings: Settings) -> Store:
    return Store(settings.database, role="supervisor", notify=settings.notify, timeout=settings.store_timeout)


def adopt(supervisor: Supervisor, state: State) -> None:
    """Take up what the image before this one has left."""
    foundry, molds = supervisor.foundry, supervisor.molds
    supervisor.hearing.code = state.code
    supervisor.settings = supervisor.hearing.reload_settings(state.code)
    supervisor.store = open_store(supervisor.settings)
    supervisor.lease = Lease.adopt(
        supervisor.settings, state.lease_id, state.lock, supervisor.store, state.lease_ends
    )
    molds.generation = state.generation
    for place, kept in zip(molds.places, state.places, strict=True):
        place.due, place.young_deaths, place.tasks = kept.due, kept.young_deaths, kept.tasks
    by_generation = {}
    for one in state.molds:
        link = MoldLink.adopt(one.pid, one.fd, one.theirs, one.unread, one.unsent, one.told)
        mold = molds.adopt(molds.places[one.place], one.generation, link, one.started, one.stage, one.tasks)
        mold.busy, mold.jobs, mold.up, mold.queues = one.busy, one.jobs, one.up, one.queues
        by_generation[one.generation] = mold
        foundry.poll.watch(link.fileno())
    for run in state.running:
        running = Running(run.claim, run.options, by_generation[run.mold])
        running.cancelling, running.paused, running.told = run.cancelling, run.paused, run.told
        if run.witness is not None:
            running.witness = Witness(running.mold.link.pid, run.witness)
        key = run.claim.id, run.claim.attempt
        supervisor.attempts.running[key] = running
        if run.claim.task == MAIL:
            supervisor.attempts.mails.add(key)
    supervisor.attempts.endings.extend(state.endings)
    supervisor.attempts.shown |= state.shown
    supervisor.attempts.write_at = 0.0 if state.endings else FOREVER
    supervisor.attempts.ended_count = supervisor.title_count = state.ended_count
    supervisor.orders.quiet = state.quiet
    supervisor.renewal.rescue_at = state.rescue_at
    supervisor.wishes.due = 0.0 if state.running else FOREVER
    supervisor.outage.since = state.away_since
    if supervisor.lease.taken:
        supervisor.renewal.set_fence()
    # what is busy under our name and not among the running was claimed when the exec came
    supervisor.rows.in_doubt = True


# ------------------------------------------------------------------------------- the upgrade


class Upgrade:
    """From USR2 to the exec: one trial at a time."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._output = -1
        #: Of the trial; 0: there is none.
        self.pid = 0
        #: When the trial has taken too long.
        self.due = FOREVER

    def begin(self) -> None:
        """Start the trial."""
        state = _file(gather(self._supervisor))
        self._output = scratch.scratch_file("forkrunner-trial")
        try:
            with process.Inside(self._supervisor.foundry.folder):
                self.pid = process.spawn(
                    _command(), os.environ | {VARIABLE: f"trial:{state}"}, [state], output=self._output
                )
        except OSError as error:
            self._refuse(f"{error.filename or sys.executable}: {error.strerror}")
            return
        finally:
            os.close(state)
        self._supervisor.foundry.others.add(self.pid)
        self.due = clock.monotonic() + _TRIAL

    def check(self, now: float) -> None:
        if now >= self.due:
            self.due = FOREVER
            process.kill_tree(self.pid)  # SIGCHLD follows

    def ended(self, how: str) -> bool:
        """Take the trial's end; True: the new code can start."""
        self._supervisor.foundry.others.discard(self.pid)
        late = self.due == FOREVER
        self.pid, self.due = 0, FOREVER
        if how == "exit status 0":
            os.close(self._output)
            return True
        words = scratch.contents(self._output).decode("utf-8", "replace").strip().splitlines()
        told = words[-1].removeprefix("forkrunner: ") if words else how
        self._refuse(f"it did not get ready within {_TRIAL:g} s" if late else told)
        return False

    def _refuse(self, why: str) -> None:
        os.close(self._output)
        self._supervisor.log.emit("upgrade.refused", error=why)

    def hand_over(self) -> None:
        """Become the new code; this returns only if that is not possible, and then nothing has changed."""
        supervisor = self._supervisor
        supervisor.log.flush()
        state = gather(supervisor)
        fd = _file(state)
        ends = (end for mold in state.molds for end in (mold.fd, mold.theirs) if end >= 0)
        keep = [fd, state.lock, *ends]
        try:
            with process.Inside(supervisor.foundry.folder):
                process.become(
                    _command(), os.environ | supervisor.notifier.environment | {VARIABLE: str(fd)}, keep
                )
        except OSError as error:
            self._output = os.open(os.devnull, os.O_RDONLY)
            self._refuse(f"{error.filename or sys.executable}: {error.strerror}")
        finally:
            os.close(fd)


def _command() -> list[str]:
    # as it was typed, by the names that were typed: a link in them may lead to the new release
    return [sys.executable, *sys.orig_argv[1:]]
