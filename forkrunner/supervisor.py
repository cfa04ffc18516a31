"""The supervisor: everything about rows.

One thread, one loop with one place that blocks. It polls the jobs table, marks rows busy
inside a transaction, hands them to a mold, writes outcomes back in batches, keeps its own
lease alive and rescues the rows of dead supervisors. It talks to the database and to its
mold and to nothing else; it never imports the application, so nothing in the application can
crash it, block it or make it grow.

Always true between two lines of the loop:
(1) every job in `running` is busy under our id in the database, or our lease was lost;
(2) an attempt leaves `running` when the mold says how it ended, and its ending stays in
    `endings` until a transaction that contains it was committed;
(3) no transaction is open;
(4) no more jobs are claimed than there are free slots;
(5) while the database is away nothing is claimed, nothing is rescued, nothing is forgotten;
(6) whoever rescues deletes the dead supervisor's row first: its late writes then find nothing.
"""

from __future__ import annotations

import os
import signal
from collections import deque
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from . import __version__, changes, clock, handover, identity, process, survivors, temporary
from .changes import Changes
from .errors import ConfigError, StoreError, StoreUnavailable, TargetError
from .foundry import Foundry, how_it_ended
from .handover import Upgrade
from .job import Attempt, Ending, Outcome, Policy, Wish, after
from .lease import HOST, Lease
from .molds import FOREVER, Mold, Stage, targets_of
from .outage import Outage
from .progress import Reader
from .progress import place as progress_place
from .safety import EFFECTS
from .tasks import LIMITS
from .wake import JOBS, WISHES, open_waker

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .config import Settings
    from .events import Log
    from .job import Claim
    from .store import Store
    from .wake import Waker

#: Signal → (method, what operators are told). Installs, dispatches, is shown by `run --help`
#: and in the README. CAUTION: contrib/'s unit files rely on TERM and QUIT.
SIGNALS: dict[int, tuple[str, str]] = {
    signal.SIGTERM: (
        "on_stop",
        "stop: claim no more, wait up to `grace_period` for the running jobs; again: kill",
    ),
    signal.SIGINT: ("on_kill", "kill: end the running jobs now; each counts as a crash and runs again"),
    signal.SIGQUIT: ("on_give_back", "kill and give back: as kill, but the attempts count as nothing"),
    signal.SIGTSTP: ("on_quiet", "quiet: claim no more, keep running what runs"),
    signal.SIGCONT: ("on_continue", "claim again after quiet"),
    signal.SIGHUP: (
        "on_reload",
        "reload: a new mold imports the code anew and takes the new jobs; the old one finishes its own",
    ),
    signal.SIGUSR2: (
        "on_upgrade",
        "upgrade: become the forkrunner that is installed now, with the same pid, molds and running jobs",
    ),
    signal.SIGCHLD: ("on_child", "a mold died: its attempts are lost, a new one is started"),
}

#: While attempts run, two transactions are this far apart, so that several endings share one, seconds.
_GATHER = 0.014
#: Share of the slots whose endings make a transaction due at once.
_FULL = 0.7
#: An ending is never held back longer than this, seconds.
_LONGEST_WAIT = 0.02
#: Endings in one transaction.
_BATCH = 500
_TITLE_EVERY = 1.0
#: Between two looks for what people want of running jobs, seconds: when nothing tells of it; when a file was
#: written, which every job does; when a notification says that it is just this.
_WISHES_EVERY, _WISHES_SOON, _WISHES_NOW = 1.0, 0.25, 0.05
#: First pause between two looks when nothing wakes us; it grows to `poll_interval`.
_IDLE_FIRST = 0.01
#: While notifications are known to arrive, looking is a safety net only: so many times `poll_interval`.
_TRUST = 10
#: What a stop that was told to kill waits at most for the last endings to be written, seconds.
_LAST_WRITES = 10.0
#: After the mold could not fork for a job, no more are claimed for so long, seconds.
_CROWDED = 1.0
#: Outside of the loop a locked SQLite file is waited for so long, seconds.
_INSIST = 5.0
#: Characters of a job's error in a log line; the rest is in the row.
_LONGEST_LINE = 500
#: What a reload does not change: it is in use since the start.
_FIXED = ("app", "database", "notify", "lease", "store_timeout", "runtime_dir", "log_level", "log_format",
          "molds", "reload")  # fmt: skip
#: What is done is not run again, whatever its task declared.
_ANY_POLICY = Policy()

Key = tuple[str, int]
T = TypeVar("T")


class Running:
    """One claimed job that a mold has."""

    __slots__ = ("cancelling", "claim", "mold", "options", "paused")

    def __init__(self, claim: Claim, options: dict[str, Any], mold: Mold) -> None:
        self.claim = claim
        self.mold = mold
        #: The task's options, with the call's own over them.
        self.options = options
        self.cancelling = self.paused = False


class Supervisor:
    def __init__(
        self,
        settings: Settings,
        target: str,
        log: Log,
        reload_settings: Callable[[dict[str, Any]], Settings],
    ) -> None:
        """Prepare; nothing is started before `run`.

        `reload_settings` makes the settings anew when the application has told what it sets in code.
        """
        self.settings = settings
        self.target = target
        self.log = log
        self.reload_settings = reload_settings
        self.running: dict[Key, Running] = {}
        #: Where jobs that ask for one have a temporary folder.
        self.temporary = temporary.folder()
        self.endings: deque[Ending] = deque()
        #: Jobs in `endings` that may have told their progress; it is cleared away when the row says more.
        self.shown: set[str] = set()
        self.ended_count = 0
        self.outage = Outage()
        #: A claim may have been committed that we do not know of.
        self.claims_in_doubt = False
        self.terminal = process.has_terminal()
        self.waker: Waker | None = None
        self.waker_lost = False
        #: Looks at the application's files, if that is asked for.
        self.changes: Changes | None = None
        self.store: Store | None = None
        self.lease: Lease
        #: What the application sets in its code, as the newest mold told.
        self.code: dict[str, Any] = {}
        #: The trial of an upgrade has gone well.
        self.may_hand_over = False
        # how far a stop has got
        self.finished = self.quiet = self.killed = False
        self.stop_at = FOREVER
        # when each duty is due, by the monotonic clock
        self.look_at = self.renew_at = self.rescue_at = self.title_at = 0.0
        self.write_at = self.wishes_at = self.fence_at = self.watch_at = FOREVER
        #: The mold could not fork: nothing is claimed before, whatever slots are free.
        self.crowded_until = 0.0
        self.last_turn = self.wishes_read = 0.0
        self.idle_pause = _IDLE_FIRST
        self.title_count = 0

    # ------------------------------------------------------------------------------- life

    def run(self) -> None:
        """Supervise until a signal ends it.

        Raises:
            TargetError, ConfigError, StoreError, HandoverError: it could not start.
        """
        before = handover.given()
        if before is not None and before.is_trial:
            settings = self.reload_settings(before.state.code)
            handover.rehearse(before.state, settings, targets_of(self.target, settings.molds))
            return
        self.signals = process.Signals(SIGNALS)
        process.adopt_orphans()
        process.keep_to_ourselves()
        self.poll = process.Poll()
        self.poll.watch(self.signals.fileno())
        # what else the application asks for is known when its first mold is up
        targets = [self.target] if before is None else before.state.targets
        self.foundry = Foundry(targets, self.log, self.poll)
        self.upgrade = Upgrade(self)
        self.molds = self.foundry.molds
        if before is None:
            self.lease = Lease(self.settings.runtime_dir)
        else:
            handover.adopt(self, before.state)
        try:
            if before is None:
                self.boot()
            else:
                self.take_over(before.state)
            while not self.finished:
                ready = self.poll.wait(self.next_due() - clock.monotonic())  # the only line that blocks
                self.take_signals()
                self.take_messages()
                now = clock.monotonic()
                self.take_wakes(ready, now)
                self.watch_files(now)
                self.keep_molds(now)
                self.enforce_lease(now)
                if now >= self.outage.retry_at:
                    self.renew(now)
                    self.rescue(now)
                    self.turn(now)
                    self.pass_on_wishes(now)
                self.proceed_with_stopping(now)
                self.send(now)
                self.upgrade.check(now)
                if self.may_hand_over:
                    self.may_hand_over = False
                    self.upgrade.hand_over()
                self.log.flush()
        finally:
            self.shut_down()
            self.log.flush()

    def boot(self) -> None:
        """Start the molds, learn the application's settings, take a lease, say so."""
        process.title(f"supervisor {self.target}")
        while not self.molds.ready():
            self.keep_molds(clock.monotonic())
            self.poll.wait(self.foundry.next_due(self.settings) - clock.monotonic())
            self.take_signals()
            if self.stop_at != FOREVER:
                self.finished = True
                return
            self.take_messages()
        settings = self.settings
        self.store = handover.open_store(settings)
        self.insist(self.store.check_schema)
        self.insist(self.take_lease)
        # also those of a supervisor whose row somebody else has taken away
        survivors.kill_marked()
        if stale := temporary.prepare():
            self.foundry.remove_folders(stale)
        self.open_waker()
        self.log.emit(
            "supervisor.started",
            version=__version__,
            target=self.target,
            database=settings.shown("database"),
            slots=settings.slots,
            queues=", ".join(settings.queues) or "all",
            pid=os.getpid(),
            wake=self.waker.kind if self.waker else "poll",
        )
        self.log.flush()

    def take_over(self, before: handover.State) -> None:
        """Go on where the program that this process was before has stopped."""
        self.use_settings()
        self.start_watching([])
        self.open_waker()
        self.on_child("SIGCHLD")  # who died meanwhile
        self.log.emit(
            "upgrade.done",
            version=__version__,
            before=before.release,
            seconds=clock.monotonic() - before.at,
            busy=len(self.running),
            molds=len(self.molds),
            pid=os.getpid(),
        )
        self.log.flush()

    def shut_down(self) -> None:
        """Leave no process, no lease and no file behind, as far as that is in our hands."""
        if not self.foundry.kill_all(last=True):
            self.log.emit("supervisor.leftover")
        released = not self.lease.taken
        try:
            if not (self.running or self.endings):
                self.insist(self.lease.release)
                released = True
            if self.store is not None:
                self.store.close()
        except StoreError:
            pass
        temporary.remove()
        if released:
            self.lease.lock.remove()
        # else the file stays, and nobody locks it from now on: with it others of this host prove our death
        if self.waker is not None:
            self.waker.close()
        self.signals.close()

    def next_due(self) -> float:
        rows = min(self.renew_at, self.rescue_at, self.turn_due(), self.wishes_at)
        stop = self.stop_at + _LAST_WRITES if self.killed else self.stop_at
        due = min(stop, self.upgrade.due, max(rows, self.outage.retry_at))
        due = min(due, self.foundry.next_due(self.settings), self.watch_at)
        if self.running:
            due = min(due, self.title_at, self.fence_at)
        # what is due and not done would make the loop spin
        return due if self.stop_at != FOREVER else min(due, self.molds.next_due(quiet=self.quiet))

    # ---------------------------------------------------------------------------- signals

    def take_signals(self) -> None:
        for number in self.signals.take():
            getattr(self, SIGNALS[number][0])(signal.Signals(number).name)

    def on_stop(self, name: str) -> None:
        if self.stop_at != FOREVER:
            self.kill(name, Outcome.LOST)
            return
        self.quiet = True
        self.stop_at = clock.monotonic() + self.settings.grace_period
        self.log.emit(
            "supervisor.stopping", signal=name, busy=len(self.running), seconds=self.settings.grace_period
        )
        self.foundry.tell_all({"kind": "leave", "wish": "stop"})

    def on_kill(self, name: str) -> None:
        self.kill(name, Outcome.LOST)

    def on_give_back(self, name: str) -> None:
        self.kill(name, Outcome.REQUEUED)

    def on_quiet(self, name: str) -> None:
        self.quiet = True
        self.log.emit("supervisor.quiet", signal=name)

    def on_continue(self, name: str) -> None:
        if self.quiet and self.stop_at == FOREVER:
            self.quiet = False
            self.look_at = 0.0

    def on_reload(self, name: str) -> None:
        if self.stop_at != FOREVER:
            self.log.emit("supervisor.ignored", signal=name, why="it is stopping")
        elif self.terminal and not process.has_terminal():
            # it was closed, and that is no wish for new code
            self.on_stop(name)
        else:
            self.log.emit("supervisor.reloading", signal=name)
            self.foundry.reload()

    def on_upgrade(self, name: str) -> None:
        if self.stop_at != FOREVER or self.store is None:
            why = "it is starting" if self.store is None else "it is stopping"
            self.log.emit("supervisor.ignored", signal=name, why=why)
        elif self.upgrade.pid:
            self.log.emit("supervisor.ignored", signal=name, why="an upgrade is under way")
        else:
            self.log.emit("upgrade.begun", signal=name)
            self.upgrade.begin()

    def on_child(self, name: str) -> None:
        for pid, status, _ in process.reap():
            self.foundry.others.discard(pid)
            mold = self.molds.with_pid(pid)
            if mold is not None:
                self.on_dead_mold(mold, how_it_ended(status))
            elif pid == self.upgrade.pid:
                self.may_hand_over = self.upgrade.ended(how_it_ended(status)) and self.stop_at == FOREVER

    def kill(self, reason: str, outcome: Outcome) -> None:
        """End all running attempts at once; `outcome` says whether that counts against them."""
        if self.killed:
            return
        self.killed = self.quiet = True
        self.stop_at = clock.monotonic()
        if self.running:
            self.log.emit("supervisor.killing", signal=reason, busy=len(self.running))
        grace = min(self.settings.grace, 1.0)
        sentence = f"ended with its supervisor ({reason})"
        self.foundry.tell_all({"kind": "end", "outcome": outcome, "sentence": sentence, "grace": grace})

    def proceed_with_stopping(self, now: float) -> None:
        if self.stop_at == FOREVER:
            return
        if now >= self.stop_at and not self.killed:
            self.kill("the grace period is over", Outcome.REQUEUED)
        # with the database away the last endings cannot be written: their rows will be rescued
        if not (self.running or self.endings) or (self.killed and now >= self.stop_at + _LAST_WRITES):
            self.finished = True
            self.log.emit(
                "supervisor.stopped", done=self.ended_count, left=len(self.running) + len(self.endings)
            )

    # ------------------------------------------------------------------------------- mold

    def keep_molds(self, now: float) -> None:
        self.foundry.care(now, self.settings)
        if self.stop_at != FOREVER:
            return
        for place in self.molds.missing(now, quiet=self.quiet):
            # the life lock must be held for as long as any child lives
            self.foundry.start(place, self.settings, keep=[self.lease.lock.fd])

    def start_watching(self, imported: list[str]) -> None:
        """Watch the application's files, if that is asked for, and those that a mold has imported from elsewhere."""
        if not self.settings.reload:
            return
        if self.changes is None:
            self.changes, self.watch_at = Changes(self.foundry.folder), clock.monotonic() + changes.EVERY
        self.changes.add(imported)

    def watch_files(self, now: float) -> None:
        if self.changes is None or now < self.watch_at:
            return
        self.watch_at = now + changes.EVERY
        path = self.changes.changed()
        if path is not None and self.stop_at == FOREVER:
            self.log.emit("files.changed", path=os.path.relpath(path, self.foundry.folder))
            self.foundry.reload()

    def on_dead_mold(self, mold: Mold, how: str) -> None:
        """Count its attempts as lost, once it is certain that none of its children is left."""
        self.take_messages_of(mold)
        self.foundry.bury(mold)
        self.renew_at = 0.0
        if mold.stage is Stage.STARTING and self.stop_at == FOREVER:
            why = mold.why or f"the process ended while it was imported ({how})"
            if self.store is None:
                raise TargetError(f"{mold.place.target}: {why}")
            self.foundry.broken(mold, why)
        elif mold.stage is Stage.DRAINING and not mold.busy:
            self.log.emit("mold.finished", generation=mold.generation)
        elif mold.stage is not Stage.DISCARDED and not self.killed:
            then = "it was draining" if mold.stage is Stage.DRAINING else "a new one is started"
            self.log.emit("mold.died", generation=mold.generation, how=how, busy=mold.busy, then=then)
        for (job_id, number), run in list(self.running.items()):
            if run.mold is mold:
                lost = {"outcome": "lost", "error_message": f"its mold died ({how})"}
                self.on_ended(mold, {"id": job_id, "attempt": number, **lost}, b"")

    def take_messages(self) -> None:
        for mold in self.molds:
            self.take_messages_of(mold)

    def take_messages_of(self, mold: Mold) -> None:
        for header, body in self.foundry.receive(mold):
            getattr(self, "on_" + header["kind"])(mold, header, body)

    def on_up(self, mold: Mold, header: dict[str, Any], body: bytes) -> None:
        if mold.stage is Stage.DISCARDED:
            return
        try:
            if mold.place.target == self.target:
                self.adopt_settings(self.reload_settings(header["code"]))
                self.code = header["code"]
            elif handover.home(self.reload_settings(header["code"])) != handover.home(self.settings):
                raise ConfigError(
                    f"{mold.place.target}: its jobs are in another database than those of {self.target}"
                )
        except ConfigError as error:
            if self.store is None:
                raise
            self.foundry.broken(mold, str(error))
            process.kill_tree(mold.link.pid)
            return
        before = self.molds.up(mold, header["tasks"], clock.monotonic())
        self.foundry.care_at = 0.0
        if before is not None:
            self.foundry.retire(before, mold.place.reason)
        if self.store is None and len(self.molds) == 1:
            self.molds.extend(targets_of(self.target, self.settings.molds)[1:])
        self.start_watching(header.get("files", []))
        self.renew_at = 0.0
        where = self.use_settings()
        mold.link.tell(
            {
                "kind": "go",
                "spares": min(self.settings.spares, self.settings.slots),
                "output_limit": self.settings.output_limit,
                "result_limit": self.settings.result_limit,
                "exit_timeout": self.settings.exit_timeout,
                "progress": {key: where[key] for key in ("url", "prefix", "rate", "folder")},
            }
        )
        self.tell_lease()
        seconds = clock.monotonic() - mold.started
        # of the first one `supervisor.started` tells
        self.log.emit(
            "mold.ready" if self.store is None else "mold.up",
            generation=mold.generation,
            tasks=len(mold.tasks),
            seconds=seconds,
            pid=mold.link.pid,
        )
        for kind, what, by in header["unsafe"]:
            self.log.emit("mold.unsafe", finding=kind, what=what, by=by, effect=EFFECTS[kind])
        self.look_at = 0.0

    def use_settings(self) -> dict[str, Any]:
        """Make ready what follows from the settings; return where progress goes."""
        where = progress_place(self.settings)
        for folder in (self.settings.runtime_dir, where["runtime"], where["folder"]):
            identity.private_folder(folder)
        self.progress = Reader(where)
        self.progress.sweep()
        return where

    def adopt_settings(self, fresh: Settings) -> None:
        """Take over what may change while we run."""
        if self.store is not None:
            for name in fresh.fix(self.settings, _FIXED):
                self.log.emit("settings.fixed", setting=name, value=self.settings.shown(name))
        self.settings = fresh

    def on_alive(self, mold: Mold, header: dict[str, Any], body: bytes) -> None:
        """Nothing more: it was heard."""

    def on_broken(self, mold: Mold, header: dict[str, Any], body: bytes) -> None:
        if self.store is None:
            raise TargetError(header["error"], traceback=header.get("traceback"))
        # the code was changed under a running supervisor: it may be mended in the same way
        self.foundry.broken(mold, header["error"], header.get("traceback"))

    def send(self, now: float) -> None:
        self.foundry.send()
        if now >= self.title_at:
            rate = (self.ended_count - self.title_count) / max(
                now - self.title_at + _TITLE_EVERY, _TITLE_EVERY
            )
            process.title(f"supervisor {self.target} [{len(self.running)} busy, {rate:.0f} done/s]")
            self.title_count, self.title_at = self.ended_count, now + _TITLE_EVERY

    # --------------------------------------------------------------------------- attempts

    def start(self, claims: list[Claim]) -> None:
        """Hand claimed jobs to the molds."""
        for claim in claims:
            mold = self.molds.choose(claim.task)
            if mold is None:  # given back by the next turn, since it does not run
                self.claims_in_doubt = True
                continue
            options = _options_of(claim, mold.tasks)
            self.running[claim.id, claim.attempt] = Running(claim, options, mold)
            mold.busy += 1
            mold.jobs += 1
            if mold.jobs == self.settings.mold_jobs:
                self.foundry.care_at = 0.0
            header: dict[str, Any] = {
                "kind": "run",
                "id": claim.id,
                "task": claim.task,
                "queue": claim.queue,
                "attempt": claim.attempt,
                "tries": claim.tries,
                "started_at": claim.started_at.isoformat(),
                "grace": self.settings.grace if options.get("grace") is None else options["grace"],
            }
            if options.get("timeout") is not None:
                header["timeout"] = options["timeout"]
            if limits := {name: options[name] for name in LIMITS if options.get(name)}:
                if "temporary_folder" in limits:
                    limits["temporary_folder"] = f"{self.temporary}/{claim.id}-{claim.attempt}"
                header["limits"] = limits
            if claim.cursor is not None:
                header["cursor"] = claim.cursor
            mold.link.tell(header, claim.arguments.encode())
            self.log.emit("job.started", task=claim.task, id=claim.id, attempt=claim.attempt)

    def on_ended(self, mold: Mold, facts: dict[str, Any], body: bytes) -> None:
        """Decide what becomes of a job whose attempt has ended, and keep it to be written. Keeps (2)."""
        run = self.running.pop((facts["id"], facts["attempt"]), None)
        if run is None:
            return  # told twice, or given back meanwhile
        mold.busy -= 1
        if mold.stage is Stage.DRAINING:
            self.renew_at = 0.0  # people wait for it
        claim = run.claim
        if facts.get("progress", True):  # unless it is known to have said nothing
            self.shown.add(claim.id)
        attempt = Attempt(
            job_id=claim.id,
            attempt=claim.attempt,
            outcome=Outcome(facts["outcome"]),
            supervisor=claim.supervisor,
            host=HOST,
            pid=facts.get("pid"),
            started_at=clock.from_wall(facts["started"]) if "started" in facts else claim.started_at,
            finished_at=clock.from_wall(facts["finished"]) if "finished" in facts else clock.utc(),
            exit_status=facts.get("exit_status"),
            signal=facts.get("signal"),
            error_type=facts.get("error_type"),
            error_message=facts.get("error_message"),
            traceback=facts.get("traceback"),
            stacks=facts.get("stacks"),
            output_tail=facts.get("output_tail"),
            cpu_user_seconds=facts.get("cpu_user"),
            cpu_system_seconds=facts.get("cpu_system"),
            peak_memory_bytes=facts.get("peak"),
            task=claim.task,
            waited_seconds=waited(claim),
            run_seconds=facts.get("ran"),
            minor_faults=facts.get("minor_faults"),
            major_faults=facts.get("major_faults"),
            voluntary_switches=facts.get("voluntary"),
            involuntary_switches=facts.get("involuntary"),
            leftover_processes=facts.get("leftover"),
            output_bytes=facts.get("output_bytes"),
            steps=msgspec.json.encode(facts["steps"]).decode() if "steps" in facts else None,
        )
        retry, cursor = facts.get("retry", True), facts.get("cursor")
        output = None
        if length := facts.get("output"):  # it stands behind the result
            body, output = body[:-length], body[-length:].decode("utf-8", "replace")
        self.keep(attempt, claim, run.options, retry=retry, result=body, cursor=cursor, output=output)

    def on_refused(self, mold: Mold, header: dict[str, Any], body: bytes) -> None:
        """Give a job back that a mold could not fork for; it counts as nothing."""
        if self.running.pop((header["id"], header["attempt"]), None):
            mold.busy -= 1
        self.claims_in_doubt = True  # what is busy under our id and does not run is given back
        self.crowded_until = clock.monotonic() + _CROWDED
        self.log.emit("job.refused", id=header["id"], error=header["error"])

    def keep(
        self,
        attempt: Attempt,
        claim: Claim,
        options: dict[str, Any],
        *,
        retry: bool = True,
        result: bytes = b"",
        cursor: str | None = None,
        output: str | None = None,
    ) -> Ending:
        """Keep an ending until it is written."""
        done = attempt.outcome is Outcome.DONE
        policy = _ANY_POLICY if done else Policy.of(options)
        then = after(attempt.outcome, tries=claim.tries, crashes=claim.crashes, policy=policy, retry=retry)
        if done:
            text = result.decode("utf-8", "replace")
            ending = Ending(attempt, then, claim.task, result=text, output=output)
        else:
            ending = Ending(attempt, then, claim.task, error=attempt.sentence(), cursor=cursor, output=output)
        self.endings.append(ending)
        self.ended_count += 1
        if self.write_at == FOREVER:
            self.write_at = clock.monotonic() + _LONGEST_WAIT
        return ending

    def report(self, ending: Ending, written: bool) -> None:
        """Tell how an attempt ended, after that was written."""
        attempt = ending.attempt
        if attempt.job_id in self.shown:
            self.shown.discard(attempt.job_id)
            if written:  # else another attempt may have its progress there
                self.progress.drop(attempt.job_id)
        seconds = 0.0
        if attempt.started_at and attempt.finished_at:
            seconds = (attempt.finished_at - attempt.started_at).total_seconds()
        facts = {
            "task": ending.task,
            "id": attempt.job_id,
            "attempt": attempt.attempt,
            "outcome": str(attempt.outcome),
        }
        if not written:
            self.log.emit("job.late", **facts)
        elif attempt.outcome is Outcome.DONE:
            self.log.emit("job.ended", seconds=seconds, **facts)
        else:
            error = (ending.error or "")[:_LONGEST_LINE]
            self.log.emit("job.failed", seconds=seconds, then=ending.consequence(), error=error, **facts)

    # ------------------------------------------------------------------------------- rows

    def free_slots(self) -> int:
        if self.quiet or not self.molds.take_jobs():
            return 0
        # endings that pile up because the database is away keep slots: we must not run ever more
        return max(
            0, self.settings.slots - len(self.running) - max(0, len(self.endings) - self.settings.slots)
        )

    def turn_due(self) -> float:
        """Say when rows are to be written or claimed next: one transaction does both."""
        due = max(self.look_at, self.crowded_until) if self.free_slots() else FOREVER
        if self.claims_in_doubt:
            due = 0.0
        if self.endings:
            due = min(due, self.write_at)
            # nothing else runs, or most slots wait: no reason to gather any longer
            if not self.running or len(self.endings) >= self.settings.slots * _FULL:
                return 0.0
        return max(due, self.last_turn + _GATHER) if self.running else due

    def turn(self, now: float) -> None:
        """Write what has ended and claim for what is free, in one transaction."""
        if now < self.turn_due() or self.store is None or not self.lease.taken:
            return
        if self.claims_in_doubt and not self.ask(self.give_back_strays):
            return
        store, supervisor = self.store, self.lease.id
        batch = store.batch(self.endings)
        free = self.free_slots() if now >= self.crowded_until else 0
        queues = self.settings.queues or None
        # until the answer is here we do not know what was committed
        self.claims_in_doubt = free > 0
        answer = self.ask(lambda: store.turn(supervisor, batch, free, queues))
        if answer is None:
            # locked by another process: nothing was begun
            self.claims_in_doubt = self.claims_in_doubt and self.outage.since is not None
            return
        self.claims_in_doubt = False
        written, claims = answer
        # first what others wait for
        self.start(claims)
        self.foundry.send()
        for ending in batch:
            self.endings.popleft()
            self.report(ending, (ending.attempt.job_id, ending.attempt.attempt) in written)
        self.write_at = clock.monotonic() if self.endings else FOREVER
        if claims:
            self.idle_pause = _IDLE_FIRST
            self.wishes_at = min(self.wishes_at, now + _WISHES_EVERY)
        if free:
            self.look_at = 0.0 if len(claims) == free else self.next_look()
        # its beginning: a turn that took long has gathered enough meanwhile
        self.last_turn = now

    def next_look(self) -> float:
        """Say when to look for due jobs again if nothing wakes us; all that was due is ours."""
        if self.waker is not None and self.waker.kind != "poll":
            pause = self.settings.poll_interval * _TRUST
        else:
            pause, self.idle_pause = self.idle_pause, min(self.idle_pause * 1.5, self.settings.poll_interval)
        store, queues = self.store, self.settings.queues or None
        due = self.ask(lambda: (store.next_due(queues),)) if store else None
        if due and due[0] is not None:
            pause = min(max(due[0], 0.0), pause)
        return clock.monotonic() + pause

    def give_back_strays(self) -> bool:
        """Give back what is busy under our id and not running here: a commit whose answer was lost."""
        assert self.store is not None
        kept = {(ending.attempt.job_id, ending.attempt.attempt) for ending in self.endings}
        strays = self.store.busy(self.lease.id) - self.running.keys() - kept
        if strays:
            self.store.release(self.lease.id, list(strays))
            self.log.emit("claims.given_back", count=len(strays))
        self.claims_in_doubt = False
        return True

    def pass_on_wishes(self, now: float) -> None:
        """Tell the mold which running jobs are to be cancelled, and which are to stand still or go on."""
        if now < self.wishes_at or self.store is None:
            return
        self.wishes_read = now
        # where we are told of each, looking is a safety net: no statement a second for one long job
        told = self.waker is not None and self.waker.kind != "poll"
        pause = self.settings.poll_interval * _TRUST if told else _WISHES_EVERY
        self.wishes_at = now + pause if self.running else FOREVER
        store, supervisor = self.store, self.lease.id
        wishes = self.ask(lambda: store.wishes(supervisor))
        if wishes is None:
            return
        wanted = {(wish.id, wish.attempt): wish for wish in wishes}
        for key, run in self.running.items():
            wish = wanted.get(key)
            if wish is not None or run.paused:
                # one that is paused and not wished for any more is to go on
                self.pass_on(wish or Wish(*key, cancel=False, reason=None, actor=None, paused=False), run)

    def pass_on(self, wish: Wish, run: Running) -> None:
        if run.cancelling:
            return
        order: dict[str, Any] = {"id": wish.id, "attempt": wish.attempt}
        if wish.cancel:
            run.cancelling = True
            order |= {"kind": "kill", "outcome": "cancelled"}
            order["sentence"] = wish.reason or f"by {wish.actor or 'request'}"
            run.mold.link.tell(order)
        elif wish.paused != run.paused:
            run.paused = wish.paused
            run.mold.link.tell(order | {"kind": "pause" if run.paused else "resume"})
            event = "job.paused" if run.paused else "job.resumed"
            self.log.emit(event, task=run.claim.task, **order)

    # ------------------------------------------------------------------------------ lease

    def take_lease(self) -> bool:
        assert self.store is not None
        self.lease.take(self.store, self.settings.lease, self.target, self.settings.slots, self.picture())
        self.leased()
        return True

    def picture(self) -> str:
        return msgspec.json.encode(self.molds.picture()).decode()

    def leased(self) -> None:
        self.renew_at = clock.monotonic() + self.settings.lease / 3
        self.set_fence()
        self.tell_lease()

    def tell_lease(self) -> None:
        if self.lease.taken:
            self.foundry.tell_all({"kind": "lease", "until": self.lease.kill_at})

    def set_fence(self) -> None:
        self.fence_at = clock.monotonic() + max(0.0, self.lease.fence_at - clock.boottime())

    def enforce_lease(self, now: float) -> None:
        """Kill the molds that still have attempts when the lease is nearly over: they were to end them, and hang."""
        # by the clock that goes on while the host sleeps; once
        if self.fence_at == FOREVER or clock.boottime() < self.lease.fence_at:
            return
        self.fence_at = FOREVER
        for mold in self.molds:
            if mold.busy:
                self.log.emit("mold.fenced", generation=mold.generation)
                self.foundry.kill(mold)

    def renew(self, now: float) -> None:
        if now < self.renew_at:
            return
        if not self.lease.taken:  # we started anew while the database was away
            self.ask(self.take_lease)
            return
        kept = self.ask(lambda: self.lease.renew(self.picture()))
        if kept:
            self.leased()
            if self.waker_lost:
                self.open_waker()
        elif kept is False:
            self.start_anew()

    def start_anew(self) -> None:
        """Take a new identity: somebody believed us dead. What had ended is reported once more, under the old one."""
        lost = len(self.running)
        self.write_late_endings()
        self.running.clear()
        self.endings.clear()
        self.claims_in_doubt = False
        # here and now, for what would be claimed under the new name must not be handed to them; the next ones
        # hold the new lock
        self.foundry.kill_all()
        self.lease.lock.remove()
        self.lease = Lease(self.settings.runtime_dir)
        self.log.emit("supervisor.lost_lease", busy=lost, supervisor=self.lease.id)
        self.renew_at = 0.0

    def write_late_endings(self) -> None:
        """Try to write what ended before the lease was lost: where the row has moved on it is refused."""
        if self.store is None or not self.endings:
            return
        store, late = self.store, self.store.batch(self.endings)
        written = self.ask(lambda: store.finish(late))
        for ending in late if written is not None else ():
            self.report(ending, (ending.attempt.job_id, ending.attempt.attempt) in (written or ()))

    def rescue(self, now: float) -> None:
        """Take back the rows of supervisors that are dead; run again what may be. Keeps (6)."""
        if now < self.rescue_at or self.store is None or not self.lease.taken:
            return
        store, lease = self.store, self.lease

        def find() -> list[Claim]:
            lease.expire_the_dead()
            return store.orphans(_BATCH)

        orphans = self.ask(find)
        if orphans is None:
            return
        self.rescue_at = now + self.settings.lease / 3
        waiting = {(ending.attempt.job_id, ending.attempt.attempt) for ending in self.endings}
        for claim in orphans:
            if (claim.id, claim.attempt) in waiting:
                continue
            attempt = Attempt(
                job_id=claim.id,
                attempt=claim.attempt,
                outcome=Outcome.LOST,
                supervisor=claim.supervisor,
                started_at=claim.started_at,
                finished_at=clock.utc(),
                task=claim.task,
                waited_seconds=waited(claim),
                error_message="its supervisor died or lost its lease",
            )
            self.shown.add(claim.id)
            self.keep(attempt, claim, _options_of(claim, self.molds.tasks()))
        if orphans:
            self.log.emit("jobs.rescued", count=len(orphans))

    # -------------------------------------------------------------------------- database

    def ask(self, work: Callable[[], T]) -> T | None:
        """Call the store; None if it is away: then all is kept, and that is said once. Keeps (5)."""
        try:
            answer = work()
        except StoreUnavailable as error:
            now = clock.monotonic()
            if error.busy:
                self.outage.locked(now)
            elif self.outage.failed(now):
                self.log.emit("database.away", error=str(error))
            return None
        away = self.outage.worked(clock.monotonic())
        if away is not None:
            self.on_back(away)
        return answer

    def on_back(self, away: float) -> None:
        self.log.emit("database.back", seconds=away, kept=len(self.endings))
        # all leases ran out meanwhile: everybody gets the time to renew before anybody rescues
        self.rescue_at = clock.monotonic() + self.settings.lease
        self.renew_at = 0.0
        self.open_waker()

    def insist(self, work: Callable[[], object]) -> None:
        """Call the store before the loop or after it: a locked SQLite file is waited for, a database away is not.

        Raises:
            StoreError: as the store does.
        """
        end = clock.monotonic() + _INSIST
        while True:
            try:
                work()
                return
            except StoreUnavailable as error:
                if not error.busy or clock.monotonic() >= end:
                    raise
            process.Poll().wait(0.02)

    # ----------------------------------------------------------------------------- waking

    def open_waker(self) -> None:
        self.waker_lost = False
        if self.waker is not None:
            if self.waker.fileno() >= 0:
                self.poll.forget(self.waker.fileno())
            self.waker.close()
        self.waker = open_waker(self.settings.database) if self.settings.notify else None
        if self.waker is not None and self.waker.fileno() >= 0:
            self.poll.watch(self.waker.fileno())
        if self.running:
            # somebody may have wished for something while we did not hear
            self.wishes_at = 0.0

    def take_wakes(self, ready: set[int], now: float) -> None:
        if self.waker is None or self.waker.fileno() not in ready or not (news := self.waker.drain()):
            return
        if news & JOBS:
            self.look_at = 0.0
        if news & WISHES and self.running:
            # a flood of them must not become a statement each
            pause = _WISHES_SOON if news & JOBS else _WISHES_NOW
            self.wishes_at = min(self.wishes_at, max(now, self.wishes_read + pause))
        # its connection broke: until the next renewal we poll
        self.waker_lost = self.waker.kind == "poll"


def _options_of(claim: Claim, tasks: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the task's options with those of the call, which are in the row, over them."""
    options = tasks.get(claim.task, {})
    return options | msgspec.json.decode(claim.options) if claim.options else options


def waited(claim: Claim) -> float | None:
    """Return how long a job was due before it was claimed, seconds by the database's clock."""
    if claim.run_at is None:
        return None
    return max(0.0, (claim.started_at - max(claim.run_at, claim.created_at)).total_seconds())


def signal_table() -> str:
    """Return the signals as a Markdown table."""
    rows = [
        f"| `{signal.Signals(n).name[3:]}` | {text} |"
        for n, (_, text) in SIGNALS.items()
        if n != signal.SIGCHLD
    ]
    return "\n".join(["| signal | what the supervisor does |", "| --- | --- |", *rows])
