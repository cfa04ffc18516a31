"""The supervisor's waker: opened, heard, opened again. What wakers there are says `wake.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .wake import JOBS, WISHES, open_waker
from .wishes import NOW, SOON

if TYPE_CHECKING:
    from .supervisor import Supervisor
    from .wake import Waker


class Waking:
    """What wakes the loop when something was enqueued, or is wished for."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.supervisor = supervisor
        self.attempts = supervisor.attempts
        self.waker: Waker | None = None
        self.lost = False

    def open(self) -> None:
        self.lost = False
        if self.waker is not None:
            if self.waker.fileno() >= 0:
                self.supervisor.poll.forget(self.waker.fileno())
            self.waker.close()
        self.waker = (
            open_waker(self.supervisor.settings.database) if self.supervisor.settings.notify else None
        )
        if self.waker is not None and self.waker.fileno() >= 0:
            self.supervisor.poll.watch(self.waker.fileno())
        if self.attempts.running:
            # somebody may have wished for something while we did not hear
            self.supervisor.wishes.due = 0.0

    def take(self, ready: set[int], now: float) -> None:
        if self.waker is None or self.waker.fileno() not in ready or not (news := self.waker.drain()):
            return
        if news & JOBS:
            self.supervisor.rows.look_at = 0.0
        if news & WISHES and self.attempts.running:
            # a flood of them must not become a statement each
            pause = SOON if news & JOBS else NOW
            self.supervisor.wishes.due = min(
                self.supervisor.wishes.due, max(now, self.supervisor.wishes.read_at + pause)
            )
        # its connection broke: until the next renewal we poll
        self.lost = self.waker.kind == "poll"

    def kind(self) -> str:
        return self.waker.kind if self.waker is not None else "poll"

    def works(self) -> bool:
        """Say whether notifications are known to arrive."""
        return self.kind() != "poll"
