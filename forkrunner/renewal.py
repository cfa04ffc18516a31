"""Duties of the lease: keep it alive, end what hangs when it is nearly over, rescue the rows of dead supervisors.

Used by the supervisor's loop only. What a lease is, and what makes it safe, says `lease.py`. Keeps (6) of
`supervisor.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from . import clock
from .attempts import options_of, waited
from .job import Outcome
from .lease import Lease
from .molds import FOREVER
from .records import Attempt

if TYPE_CHECKING:
    from .records import Claim
    from .supervisor import Supervisor

#: Rows that are rescued at once.
_BATCH = 500


class Renewal:
    """When the lease is renewed and enforced, and the dead are looked for."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.supervisor = supervisor
        self.log = supervisor.log
        self.attempts = supervisor.attempts
        self.renew_at = self.rescue_at = 0.0
        #: When molds that still have attempts are killed.
        self.fence_at = FOREVER

    def take_lease(self) -> bool:
        assert self.supervisor.store is not None
        self.supervisor.lease.take(
            self.supervisor.store,
            self.supervisor.settings.lease,
            self.supervisor.target,
            self.supervisor.settings.slots,
            self.picture(),
        )
        self.leased()
        return True

    def picture(self) -> str:
        """Say how the supervisor stands, for its row. `queues` is there only if it does not take from all: `clientsql.py` asks for that."""
        found: dict[str, Any] = {
            "stage": self.supervisor.orders.stage,
            "molds": self.supervisor.molds.picture(),
        }
        if self.supervisor.settings.queues:
            found["queues"] = self.supervisor.settings.queues
        return msgspec.json.encode(found).decode()

    def leased(self) -> None:
        self.renew_at = clock.monotonic() + self.supervisor.settings.lease / 3
        self.set_fence()
        self.tell_lease()

    def tell_lease(self) -> None:
        if self.supervisor.lease.taken:
            self.supervisor.foundry.tell_all({"kind": "lease", "until": self.supervisor.lease.kill_at})

    def set_fence(self) -> None:
        self.fence_at = clock.monotonic() + max(0.0, self.supervisor.lease.fence_at - clock.boottime())

    def enforce(self, now: float) -> None:
        """Kill the molds that still have attempts when the lease is nearly over: they were to end them, and hang."""
        # by the clock that goes on while the host sleeps; once
        if self.fence_at == FOREVER or clock.boottime() < self.supervisor.lease.fence_at:
            return
        self.fence_at = FOREVER
        for mold in self.supervisor.molds:
            if mold.busy:
                self.log.emit("mold.fenced", generation=mold.generation)
                self.supervisor.foundry.kill(mold)

    def renew(self, now: float) -> None:
        if now < self.renew_at:
            return
        if not self.supervisor.lease.taken:  # we started anew while the database was away
            self.supervisor.ask(self.take_lease)
            return
        kept = self.supervisor.ask(lambda: self.supervisor.lease.renew(self.picture()))
        if kept:
            self.leased()
            if self.supervisor.waking.lost:
                self.supervisor.waking.open()
        elif kept is False:
            self.start_anew()

    def start_anew(self) -> None:
        """Take a new identity: somebody believed us dead. What had ended is reported once more, under the old one."""
        lost = len(self.attempts.running)
        self.write_late_endings()
        self.attempts.running.clear()
        self.attempts.mails.clear()
        self.attempts.endings.clear()
        self.supervisor.rows.in_doubt = False
        self.supervisor.rows.came_back.clear()
        # here and now, for what would be claimed under the new name must not be handed to them; the next ones
        # hold the new lock
        self.supervisor.foundry.kill_all()
        self.supervisor.lease.lock.remove()
        self.supervisor.lease = Lease(self.supervisor.settings)
        self.log.emit("supervisor.lost_lease", busy=lost, supervisor=self.supervisor.lease.id)
        self.renew_at = 0.0

    def write_late_endings(self) -> None:
        """Try to write what ended before the lease was lost: where the row has moved on it is refused."""
        if self.supervisor.store is None or not self.attempts.endings:
            return
        store, late = self.supervisor.store, self.supervisor.store.batch(self.attempts.endings)
        written = self.supervisor.ask(lambda: store.finish(late))
        if written is None:
            return
        for ending in late:
            self.attempts.report(ending, written.get(ending.key))

    def rescue(self, now: float) -> None:
        """Take back the rows of supervisors that are dead; run again what may be. Keeps (6)."""
        if now < self.rescue_at or self.supervisor.store is None or not self.supervisor.lease.taken:
            return
        store, lease = self.supervisor.store, self.supervisor.lease

        def find() -> list[Claim]:
            lease.expire_the_dead()
            return store.orphans(_BATCH)

        orphans = self.supervisor.ask(find)
        if orphans is None:
            return
        self.rescue_at = now + self.supervisor.settings.lease / 3
        waiting = {ending.key for ending in self.attempts.endings}
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
            self.attempts.shown.add(claim.id)
            self.attempts.keep(attempt, claim, options_of(claim, self.supervisor.molds.tasks()))
        if orphans:
            self.log.emit("jobs.rescued", count=len(orphans))
