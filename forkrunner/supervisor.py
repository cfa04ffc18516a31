"""The supervisor: everything about rows.

One thread, one loop with one place that blocks. It polls the jobs table, marks rows busy
inside a transaction, hands them to a mold, writes outcomes back in batches, keeps its own
lease alive and rescues the rows of dead supervisors. It never imports the application, so nothing in
the application can crash it, block it or make it grow.

Here are the loop, its beginning and its end. The duties that it calls are in files of their own, each with when it is
due next and what it keeps: `attempts.py` (what runs, what has ended), `rows.py` (the turn), `wishes.py`, `renewal.py` (the lease,
the rescue), `waking.py`, `hearing.py` (the molds' messages) and `orders.py` (signals, stopping).

Always true between two lines of the loop:
(1) every job in `attempts.running` is busy under our id in the database, or our lease was lost;
(2) an attempt leaves `running` when the mold says how it ended, and its ending stays in
    `endings` until a transaction that contains it was committed;
(3) no transaction is open;
(4) no more jobs run than there are slots, and no more are claimed than run, or will in a moment: see `ahead.py`;
(5) while the database is away nothing is claimed, nothing is rescued, nothing is forgotten;
(6) whoever rescues deletes the dead supervisor's row first: its late writes then find nothing.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, TypeVar

from . import __version__, clock, descriptors, handover, process, survivors, temporary, titles
from .attempts import Attempts
from .errors import StoreError, StoreUnavailable
from .foundry import Foundry
from .handover import Upgrade
from .hearing import Hearing
from .housekeeping import Housekeeping
from .lease import Lease
from .mailing import Mailing
from .molds import FOREVER, targets_of
from .notify import Notifier
from .orders import Orders
from .outage import Outage
from .renewal import Renewal
from .rows import Rows
from .signals import Poll
from .waking import Waking
from .wishes import Wishes

if TYPE_CHECKING:
    from collections.abc import Callable

    from .config import Settings
    from .events import Log
    from .store import Store

_TITLE_EVERY = 1.0
#: Outside of the loop a locked SQLite file is waited for so long, seconds.
_INSIST = 5.0

T = TypeVar("T")


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
        self.attempts = Attempts(self)
        self.orders = Orders(self)
        self.hearing = Hearing(self, reload_settings)
        self.waking = Waking(self)
        self.renewal = Renewal(self)
        self.rows = Rows(self)
        self.wishes = Wishes(self)
        self.housekeeping = Housekeeping(self)
        self.mailing = Mailing(self)
        self.outage = Outage()
        self.store: Store | None = None
        self.lease: Lease
        self.title_at = 0.0
        self.title_count = 0

    def run(self) -> None:
        """Supervise until a signal ends it.

        Raises:
            TargetError, ConfigError, StoreError, HandoverError: it could not start.
        """
        before = handover.given()
        if before is not None and before.is_trial:
            settings = self.hearing.reload_settings(before.state.code)
            handover.rehearse(before.state, settings, targets_of(self.target, settings.molds))
            return
        signals = self.orders.listen()
        process.adopt_orphans()
        descriptors.keep_to_ourselves()
        self.poll = Poll()
        self.poll.watch(signals.fileno())
        self.notifier = Notifier()
        # what else the application asks for is known when its first mold is up
        targets = [self.target] if before is None else before.state.targets
        self.foundry = Foundry(targets, self.log, self.poll)
        self.upgrade = Upgrade(self)
        self.molds = self.foundry.molds
        if before is None:
            self.lease = Lease(self.settings)
        else:
            handover.adopt(self, before.state)
        try:
            if before is None:
                self.boot()
            else:
                self.take_over(before.state)
            while not self.orders.finished:
                ready = self.poll.wait(self.next_due() - clock.monotonic())  # the only line that blocks
                self.orders.take()
                self.hearing.take()
                now = clock.monotonic()
                self.waking.take(ready, now)
                self.hearing.watch_files(now)
                self.keep_molds(now)
                self.renewal.enforce(now)
                if now >= self.outage.retry_at:
                    self.renewal.renew(now)
                    self.renewal.rescue(now)
                    self.rows.turn(now)
                    self.mailing.turn(now)
                    self.wishes.pass_on(now)
                self.housekeeping.care(now)
                self.orders.proceed(now)
                self.send(now)
                self.upgrade.check(now)
                self.notifier.beat(now)
                if self.orders.may_hand_over:
                    self.orders.may_hand_over = False
                    self.orders.take()  # what came since would be gone with this image
                    if self.orders.stop_at == FOREVER:
                        self.upgrade.hand_over()
                self.log.flush()
        finally:
            self.shut_down()
            self.log.flush()

    def boot(self) -> None:
        """Start the molds, learn the application's settings, take a lease, say so."""
        titles.show(f"supervisor {self.target}")
        while not self.molds.ready():
            self.keep_molds(clock.monotonic())
            self.poll.wait(self.foundry.next_due(self.settings) - clock.monotonic())
            self.orders.take()
            if self.orders.stop_at != FOREVER:
                self.orders.finished = True
                return
            self.hearing.take()
        settings = self.settings
        self.store = handover.open_store(settings)
        self.insist(self.store.check_schema)
        self.insist(self.renewal.take_lease)
        # also those of a supervisor whose row somebody else has taken away
        survivors.kill_marked()
        if stale := temporary.prepare():
            self.foundry.remove_folders(stale)
        self.waking.open()
        self.log.emit(
            "supervisor.started",
            version=__version__,
            target=self.target,
            database=settings.shown("database"),
            slots=settings.slots,
            queues=", ".join(settings.queues) or "all",
            pid=os.getpid(),
            wake=self.waking.kind(),
        )
        self.log.flush()
        self.notifier.say("READY=1")

    def take_over(self, before: handover.State) -> None:
        """Go on where the program that this process was before has stopped."""
        self.hearing.use_settings()
        self.hearing.start_watching([])
        self.waking.open()
        self.orders.on_child("SIGCHLD")  # who died meanwhile
        self.log.emit(
            "upgrade.done",
            version=__version__,
            before=before.release,
            seconds=clock.monotonic() - before.at,
            busy=len(self.attempts.running),
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
            if not (self.attempts.running or self.attempts.endings or self.rows.came_back):
                self.insist(self.lease.release)
                released = True
            if self.store is not None:
                self.store.close()
        except StoreError:
            pass
        if not temporary.remove() and not self.foundry.stuck:
            self.foundry.cannot_remove(temporary.folder())
        if released:
            self.lease.lock.remove()
        # else the file stays, and nobody locks it from now on: with it others of this host prove our death
        if self.waking.waker is not None:
            self.waking.waker.close()
        self.orders.signals.close()

    def next_due(self) -> float:
        rows = min(
            self.renewal.renew_at,
            self.renewal.rescue_at,
            self.rows.due(),
            self.wishes.due,
            self.mailing.due(),
        )
        due = min(
            self.orders.stop_due(), self.upgrade.due, self.notifier.due, max(rows, self.outage.retry_at)
        )
        due = min(due, self.foundry.next_due(self.settings), self.hearing.watch_at)
        due = min(due, FOREVER if self.housekeeping.pid else self.housekeeping.due)
        if self.attempts.running:
            due = min(due, self.title_at, self.renewal.fence_at)
        # what is due and not done would make the loop spin
        return (
            due if self.orders.stop_at != FOREVER else min(due, self.molds.next_due(quiet=self.orders.quiet))
        )

    def keep_molds(self, now: float) -> None:
        self.foundry.care(now, self.settings)
        if self.orders.stop_at != FOREVER:
            return
        for place in self.molds.missing(now, quiet=self.orders.quiet):
            # the life lock must be held for as long as any child lives
            self.foundry.start(place, self.settings, keep=[self.lease.lock.fd])

    def send(self, now: float) -> None:
        self.foundry.send()
        if now >= self.title_at:
            rate = (self.attempts.ended_count - self.title_count) / max(
                now - self.title_at + _TITLE_EVERY, _TITLE_EVERY
            )
            stage = "" if self.orders.stage == "serving" else f"{self.orders.stage}, "
            titles.show(
                f"supervisor {self.target} [{stage}{min(self.attempts.busy, self.settings.slots)} busy, {rate:.0f} done/s]"
            )
            self.title_count, self.title_at = self.attempts.ended_count, now + _TITLE_EVERY

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
        self.log.emit("database.back", seconds=away, kept=len(self.attempts.endings))
        # all leases ran out meanwhile: everybody gets the time to renew before anybody rescues
        self.renewal.rescue_at = clock.monotonic() + self.settings.lease
        self.renewal.renew_at = 0.0
        self.waking.open()

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
            Poll().wait(0.02)
