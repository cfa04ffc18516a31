"""What a task may ask about the job that it is in."""

from __future__ import annotations

import json

from . import clock
from .current import current
from .payload import plain_values
from .safepoint import paused_seconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from typing import Any

    from .session import Session


class CurrentJob:
    """The job that this process runs."""

    __slots__ = ("_arguments", "_cursor", "_deadline", "attempt", "id", "queue", "task", "tries")

    def __init__(self, job: Mapping[str, Any], arguments: bytes) -> None:
        self.id: str = job["id"]
        self.task: str = job["task"]
        self.queue: str = job["queue"]
        #: Number of this attempt, from 1.
        self.attempt: int = job["attempt"]
        #: How many attempts before this one counted against `max_attempts`.
        self.tries: int = job["tries"]
        self._arguments = arguments
        self._cursor: str | None = job.get("cursor")
        self._deadline: float | None = job.get("deadline")

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments as they are stored: parameter name → plain JSON value, or Secret."""
        return plain_values(self._arguments)

    @property
    def cursor(self) -> Any:
        """What an earlier attempt gave to the safe point at which it left; None: begin at the beginning."""
        return None if self._cursor is None else json.loads(self._cursor)

    def session(self) -> Session:
        """Return a SQLAlchemy Session on the database of the jobs, the same at each call; the first one connects.

        It is committed when the task has returned, and rolled back when the attempt ends in any other way, also by a cancel
        or at a safe point: commit yourself what a cursor counts as done. In a replay nothing of it stays. For one thread at
        a time, and for the job's own process only.
        Raises:
            RuntimeError: in a process that the job has forked, or outside of the job.
        """
        if current.work is None:
            if current.runner is None or current.job is None:
                raise RuntimeError("session(): this process runs no job")
            from .session import Work

            current.work = Work(current.runner.url, self.id)
        session: Session = current.work.session()
        return session

    @property
    def time_left(self) -> float | None:
        """Seconds until `timeout` ends this attempt, None without one; the time of a pause does not count."""
        if self._deadline is None:
            return None
        return max(0.0, self._deadline + paused_seconds() - clock.monotonic())

    @property
    def deadline(self) -> datetime | None:
        """When `timeout` ends this attempt, aware, UTC; None without one. A pause moves it."""
        from datetime import timedelta

        left = self.time_left
        return None if left is None else clock.utc() + timedelta(seconds=left)

    def __repr__(self) -> str:
        return f"<CurrentJob {self.id} {self.task} attempt {self.attempt}>"


def current_job() -> CurrentJob | None:
    """Return the job that runs in this process, None outside of one."""
    job = current.job
    return None if job is None else CurrentJob(job, current.arguments)
