"""Duty of mail: which endings are told of, and a slot of its own for the jobs that send them, one at a time.

Used by the supervisor's loop only. A mail is a job: claimed, run in a child, tried again, rescued like any other. It
takes no slot, so a mail server that hangs slows nothing down. While nobody is to get mail, nothing is asked.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from . import clock
from .mails import Rules
from .molds import FOREVER

if TYPE_CHECKING:
    from .job import Next
    from .records import Attempt, Notice
    from .supervisor import Supervisor

#: Longest time between two looks for mails that are due: what another supervisor has left undone, seconds.
_LOOK = 15.0
#: And when one is due that was not to be had: somebody holds it locked.
_HELD = 0.1
#: Mails are forgotten so long after they were sealed; looked for so often, seconds.
_KEPT = timedelta(days=40)
_FORGET_EVERY = 3600.0


class Mailing:
    """The mails of one supervisor."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.supervisor = supervisor
        self.rules = Rules(to=(), on=(), interval=0.0, cap=0, retry=0.0, timeout=0.0, tasks={})
        #: When to look for mails that are due.
        self.look_at = FOREVER
        self.forget_at = 0.0

    def use_settings(self) -> None:
        """Take over what the settings and the tasks say of mail."""
        settings = self.supervisor.settings
        self.rules = Rules(
            to=settings.mail_to,
            on=settings.mail_on,
            interval=settings.mail_interval,
            cap=settings.mail_cap,
            retry=settings.mail_retry,
            timeout=settings.mail_timeout,
            tasks=self.supervisor.molds.tasks(),
        )
        self.look_at = 0.0 if self.rules.active else FOREVER

    def notice(
        self, attempt: Attempt, then: Next, task: str, options: dict[str, Any], reason: str
    ) -> Notice | None:
        """Return the mail that is due with an ending, if one is, to be written with it."""
        notice = self.rules.notice(attempt, then, task, options, reason)
        if notice is not None:
            # it is there when the ending is, which is written first
            self.look_at = 0.0
        return notice

    def due(self) -> float:
        supervisor = self.supervisor
        if supervisor.attempts.mails or supervisor.orders.quiet or not supervisor.molds.take_jobs():
            return FOREVER
        # after the turn that writes the ending, which wakes nobody by itself
        return FOREVER if supervisor.attempts.endings and self.look_at == 0.0 else self.look_at

    def turn(self, now: float) -> None:
        """Claim a mail that is due and have it sent, if none is being sent."""
        supervisor = self.supervisor
        if now < self.due() or supervisor.store is None or not supervisor.lease.taken:
            return
        store, rows = supervisor.store, supervisor.rows
        in_doubt, rows.in_doubt = rows.in_doubt, True
        answer = supervisor.ask(lambda: store.claim_mail(supervisor.lease.id))
        if answer is None:
            # locked by another process: nothing was begun
            rows.in_doubt = in_doubt or supervisor.outage.since is not None
            return
        rows.in_doubt = in_doubt
        claims, due = answer
        if claims:
            supervisor.attempts.start_mails(claims)
            supervisor.foundry.send()
            self.look_at = 0.0
            return
        self.look_at = clock.monotonic() + min(_LOOK, _LOOK if due is None else max(due, _HELD))
        if now >= self.forget_at:
            self.forget_at = now + _FORGET_EVERY
            supervisor.ask(lambda: (store.outbox.forget(_KEPT),))
