"""How long the database has been away and when to try again: bookkeeping without a clock of its own."""

from __future__ import annotations

#: Pause after the first failure, doubled up to the last, seconds.
FIRST, LAST = 0.1, 2.0
#: Pause when SQLite is locked by another process: no outage, it is over in a moment.
LOCKED = 0.01


class Outage:
    """One database as seen from one loop. `now` is monotonic seconds."""

    def __init__(self) -> None:
        #: When it went away; None while it answers.
        self.since: float | None = None
        #: Nothing is to be tried before.
        self.retry_at = 0.0
        self._pause = FIRST

    def locked(self, now: float) -> None:
        self.retry_at = now + LOCKED

    def failed(self, now: float) -> bool:
        """Note a failure; True if it is the first, which is to be told."""
        first = self.since is None
        if first:
            self.since = now
        self.retry_at = now + self._pause
        self._pause = min(self._pause * 2, LAST)
        return first

    def worked(self, now: float) -> float | None:
        """Note a success; return how long it was away, None if it was not."""
        if self.since is None:
            return None
        away = now - self.since
        self.since, self._pause, self.retry_at = None, FIRST, 0.0
        return away
