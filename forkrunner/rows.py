"""The turn: one transaction that writes what has ended and claims for what is free, and when it is due.

Used by the supervisor's loop only. Everything that the loop writes to rows of its own goes through here; what it
writes for the dead, and to its own row, through `renewal.py`. Keeps (4) of `supervisor.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import clock
from .ahead import Pace
from .molds import FOREVER

if TYPE_CHECKING:
    from .records import Key
    from .supervisor import Supervisor

#: While attempts run, two transactions are this far apart, so that several endings share one, seconds.
_GATHER = 0.01
#: Share of the jobs that may be claimed whose endings make a transaction due at once: the others keep the slots busy
#: until the answer is here.
_FULL = 0.3
#: First pause between two looks when nothing wakes us; it grows to `poll_interval`.
_IDLE_FIRST = 0.01
#: While notifications are known to arrive, looking is a safety net only: so many times `poll_interval`.
TRUST = 10
#: After a job could not be started, no more are claimed for so long, seconds.
_CROWDED = 1.0


class Rows:
    """When rows are looked for and written."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.supervisor = supervisor
        self.log = supervisor.log
        self.attempts = supervisor.attempts
        #: When to look for due rows, if nothing wakes us before.
        self.look_at = 0.0
        #: A claim may have been committed that we do not know of.
        self.in_doubt = False
        #: A job could not be started: nothing is claimed before, whatever slots are free.
        self.crowded_until = 0.0
        self.last_turn = 0.0
        self.pace = Pace()
        #: What molds have given back of what was claimed ahead, and the database does not know of yet.
        self.came_back: set[Key] = set()
        self.gave_back = False
        self.idle_pause = _IDLE_FIRST
        #: How long what is due and was not to be had is left alone: somebody holds it locked.
        self.held_pause = 0.0

    def most(self) -> int:
        """Say how many jobs may be claimed at the same time: one for each slot, and while they end fast some ahead."""
        slots = self.supervisor.settings.slots
        molds = list(self.supervisor.molds)
        # a mold knows only of its own jobs how many run
        if len(molds) == 1 and molds[0].queues:
            return slots + self.pace.ahead(slots, clock.monotonic())
        return slots

    def free(self) -> int:
        """Say how many may be claimed now."""
        if self.supervisor.orders.quiet or not self.supervisor.molds.take_jobs():
            return 0
        most = self.most()
        # endings that pile up because the database is away keep slots: we must not run ever more
        return max(0, most - self.attempts.busy - max(0, len(self.attempts.endings) - most))

    def due(self) -> float:
        """Say when rows are to be written or claimed next: one transaction does both."""
        due = max(self.look_at, self.crowded_until) if self.free() else FOREVER
        if self.in_doubt:
            due = 0.0
        if self.attempts.endings:
            due = min(due, self.attempts.write_at)
            # nothing else runs, or soon nothing will: no reason to gather any longer
            if not self.attempts.busy or len(self.attempts.endings) >= self.most() * _FULL:
                return 0.0
        return max(due, self.last_turn + _GATHER) if self.attempts.busy else due

    def turn(self, now: float) -> None:
        """Write what has ended and claim for what is free, in one transaction."""
        if now < self.due() or self.supervisor.store is None or not self.supervisor.lease.taken:
            return
        if self.in_doubt and not self.supervisor.ask(self.give_back_strays):
            return
        store, supervisor = self.supervisor.store, self.supervisor.lease.id
        batch = store.batch(self.attempts.endings)
        self.pace.see([seconds for one in batch if (seconds := one.attempt.run_seconds) is not None], now)
        free = self.free() if now >= self.crowded_until else 0
        queues = self.supervisor.settings.queues or None
        # until the answer is here we do not know what was committed
        self.in_doubt = free > 0
        answer = self.supervisor.ask(lambda: store.turn(supervisor, batch, free, queues))
        if answer is None:
            # locked by another process: nothing was begun
            self.in_doubt = self.in_doubt and self.supervisor.outage.since is not None
            return
        self.in_doubt = False
        written, claims = answer
        # first what others wait for
        self.attempts.start(claims)
        self.supervisor.foundry.send()
        for ending in batch:
            self.attempts.endings.popleft()
            self.attempts.report(ending, written.get(ending.key))
        self.attempts.write_at = clock.monotonic() if self.attempts.endings else FOREVER
        if claims:
            self.idle_pause, self.held_pause = _IDLE_FIRST, 0.0
            self.supervisor.wishes.expect(now)
            if self.gave_back:
                # somebody may have wished for something while they waited
                self.supervisor.wishes.due, self.gave_back = now, False
        if free:
            self.look_at = 0.0 if len(claims) == free else self.next_look()
        # its beginning: a turn that took long has gathered enough meanwhile
        self.last_turn = now

    def look(self) -> None:
        """Look for due rows at once: what kept a job from being started may be over."""
        self.look_at = self.crowded_until = 0.0

    def refused(self, now: float) -> None:
        """Take it that a mold cannot fork just now, or that the one that knows the task is missing."""
        self.in_doubt = True  # what is busy under our id and does not run is given back
        self.crowded_until = now + _CROWDED

    def returned(self, key: Key, pause: float = 0.0) -> None:
        """Give back what was claimed ahead and did not start; for so many seconds nothing is claimed ahead again."""
        self.came_back.add(key)
        self.in_doubt = True
        self.pace.stop(clock.monotonic() + pause)

    def next_look(self) -> float:
        """Say when to look for due jobs again if nothing wakes us; all that was due is ours."""
        if self.supervisor.waking.works():
            pause = self.supervisor.settings.poll_interval * TRUST
        else:
            pause, self.idle_pause = (
                self.idle_pause,
                min(self.idle_pause * 1.5, self.supervisor.settings.poll_interval),
            )
        store, queues = self.supervisor.store, self.supervisor.settings.queues or None
        due = self.supervisor.ask(lambda: (store.next_due(queues),)) if store else None
        if due and due[0] is not None:
            self.held_pause = 0.0 if due[0] > 0 else min(max(self.held_pause * 2, _GATHER), pause)
            pause = min(max(due[0], self.held_pause), pause)
        return clock.monotonic() + pause

    def give_back_strays(self) -> bool:
        """Give back what is busy under our id and not running here: a commit whose answer was lost."""
        assert self.supervisor.store is not None
        kept = {ending.key for ending in self.attempts.endings}
        strays = self.supervisor.store.busy(self.supervisor.lease.id) - self.attempts.running.keys() - kept
        if strays:
            self.supervisor.store.release(self.supervisor.lease.id, list(strays))
            # of what was claimed ahead that is nothing to speak of
            if others := len(strays - self.came_back):
                self.log.emit("claims.given_back", count=others)
            if len(strays) > others:
                self.log.emit("claims.returned", count=len(strays) - others)
                self.gave_back = True
        self.came_back.clear()
        self.in_doubt = False
        return True
