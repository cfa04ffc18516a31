"""What people want of running jobs, cancel, pause and resume: read from the rows, told to the molds.

Used by the supervisor's loop only. What becomes of a wish is the mold's affair, and comes back as an ending.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .molds import FOREVER
from .records import Wish
from .rows import TRUST

if TYPE_CHECKING:
    from .attempts import Running
    from .supervisor import Supervisor

#: Between two looks for what people want of running jobs, seconds: when nothing tells of it; when a file was
#: written, which every job does; when a notification says that it is just this.
EVERY, SOON, NOW = 1.0, 0.25, 0.05


class Wishes:
    """When wishes are looked for, and what is made of them."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.supervisor = supervisor
        self.log = supervisor.log
        self.attempts = supervisor.attempts
        self.due = FOREVER
        self.read_at = 0.0

    def expect(self, now: float) -> None:
        """Look for wishes from now on: something runs."""
        self.due = min(self.due, now + EVERY)

    def pass_on(self, now: float) -> None:
        """Tell the mold which running jobs are to be cancelled, and which are to stand still or go on."""
        if now < self.due or self.supervisor.store is None:
            return
        self.read_at = now
        # where we are told of each, looking is a safety net: no statement a second for one long job
        told = self.supervisor.waking.works()
        pause = self.supervisor.settings.poll_interval * TRUST if told else EVERY
        store, supervisor = self.supervisor.store, self.supervisor.lease.id
        wishes = self.supervisor.ask(lambda: store.wishes(supervisor))
        if wishes is None:
            # locked, or away: whoever has woken us for a wish is not to wait for the next look of an idle time
            self.due = now + SOON
            return
        self.due = now + pause if self.attempts.running else FOREVER
        wanted = {(wish.id, wish.attempt): wish for wish in wishes}
        for key, run in self.attempts.running.items():
            wish = wanted.get(key)
            if wish is not None or run.paused:
                # one that is paused and not wished for any more is to go on
                self.tell(wish or Wish(*key, cancel=False, reason=None, actor=None, paused=False), run)

    def tell(self, wish: Wish, run: Running) -> None:
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
