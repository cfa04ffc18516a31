"""Jobs claimed ahead: how many a supervisor claims beyond its free slots, and how they wait in a mold for theirs.

Jobs that are over in milliseconds end faster than the database answers: with the free slots alone filled, half of the slots
stand empty until the next claim is here. So as many more are claimed as will have ended by then, going by those that ended
last. They start in the mold when others end there, never more at once than there are slots. What has to wait all the same,
because there is a long one among them, is given back at once, as if it had not been claimed.

No system call is made here, and time is given: tests need neither processes nor a database.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import Any

    from . import child

#: Jobs are claimed so far ahead, seconds: about what it takes from one claim to the next.
_REACH = 0.02
#: At most so many times the slots.
_MOST = 3
#: What ended longer ago says nothing of the jobs that come, seconds.
_FORGET = 0.1
#: A job that has waited so long in a mold is given back, seconds.
PATIENCE = 0.05
#: Forks are cheaper in a row: while fewer than half of the slots are free, one waits so long for company, seconds.
_COMPANY = 0.004
FOREVER = float("inf")


class Pace:
    """How long jobs take, in a supervisor."""

    def __init__(self) -> None:
        #: Mean of those that ended last, seconds, and when that was.
        self._each = FOREVER
        self._seen = self._not_before = 0.0

    def see(self, seconds: Collection[float], now: float) -> None:
        """Take note of how long those took that have ended since the last time."""
        if seconds:
            self._each = sum(seconds) / len(seconds)
            self._seen = now

    def stop(self, until: float = 0.0) -> None:
        """Forget it: what was claimed ahead has not started; nothing more is before that time."""
        self._each = FOREVER
        self._not_before = max(self._not_before, until)

    def ahead(self, slots: int, now: float) -> int:
        """Say how many to claim beyond the free slots."""
        if now > self._seen + _FORGET or now < self._not_before:
            return 0
        return int(slots * min(_REACH / max(self._each, 0.001), _MOST))


class Queue:
    """What waits in a mold: messages of jobs, in the order in which they came."""

    def __init__(self) -> None:
        #: How many jobs may run at the same time.
        self.slots = 0
        self._jobs: list[tuple[float, child.Message]] = []

    def __bool__(self) -> bool:
        return bool(self._jobs)

    def put(self, jobs: list[child.Message], now: float) -> None:
        """Let these wait; the header of each says how many slots there are."""
        for job in jobs:
            self.slots = job[0]["ahead"]
            self._jobs.append((now, job))

    def take(self, busy: int, now: float) -> list[child.Message]:
        """Return those that are to start now, while so many run."""
        free = self.slots - busy
        if not self._jobs or now < self._start_at(free):
            return []
        taken, self._jobs = self._jobs[:free], self._jobs[free:]
        return [job for _, job in taken]

    def give_up(self, now: float) -> list[child.Message]:
        """Return those that have waited too long, to be given back."""
        late = 0
        while late < len(self._jobs) and now >= self._jobs[late][0] + PATIENCE:
            late += 1
        given, self._jobs = self._jobs[:late], self._jobs[late:]
        return [job for _, job in given]

    def find(self, job_id: str, attempt: int) -> dict[str, Any] | None:
        """Return the header of this one if it waits."""
        for _, (job, _) in self._jobs:
            if job["id"] == job_id and job["attempt"] == attempt:
                return job
        return None

    def remove(self, job: dict[str, Any]) -> None:
        """Let this one, which waits, not start."""
        self._jobs = [one for one in self._jobs if one[1][0] is not job]

    def clear(self) -> list[child.Message]:
        """Return all, to be given back."""
        given, self._jobs = self._jobs, []
        return [job for _, job in given]

    def due(self, busy: int) -> float:
        """Say when to `take` or to `give_up` next, while so many run."""
        if not self._jobs:
            return FOREVER
        return min(self._start_at(self.slots - busy), self._jobs[0][0] + PATIENCE)

    def _start_at(self, free: int) -> float:
        if free <= 0:
            return FOREVER
        return 0.0 if free * 2 >= self.slots else self._jobs[0][0] + _COMPANY
