"""A job as an application holds it: what became of a call, and what may be wanted of it.

Web processes, scripts and tasks use it. It holds an id and the row as it was last read; every wish goes through the
store of its runner, so it may be kept for as long as anybody likes, and used on the other side of a fork.
"""

from __future__ import annotations

import json
import time

from . import clock
from .errors import EnqueueError, JobNotFound, WaitTimeout
from .options import check_option
from .payload import plain_values
from .tasks import R

TYPE_CHECKING = False
if TYPE_CHECKING:
    from datetime import datetime
    from typing import Any, Generic, Self

    from .files import StoredFile
    from .job import State
    from .options import Duration
    from .records import Attempt, Row
    from .runner import Runner
else:
    from .tasks import Generic

#: Seconds between two looks of `Job.wait`: the first, and the longest.
_SHORTEST_POLL, _LONGEST_POLL = 0.005, 0.25


class Job(Generic[R]):
    """One call of a task. What it tells is the row as it was when first asked, until `refresh`."""

    def __init__(self, runner: Runner, id: str, row: Row | None = None, *, pending: bool = False) -> None:
        self.id = id
        self._runner = runner
        self._read = row
        #: Made inside a transaction of the caller's: nobody else sees it before the commit.
        self._uncommitted = pending

    def __repr__(self) -> str:
        # asks nothing: a debugger shows it at any time
        state = f" {self._read.task} {self._read.state}" if self._read else ""
        return f"<Job {self.id}{state}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Job) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    def _row(self) -> Row:
        if self._read is None:
            try:
                self._read = self._runner.store.get(self.id)
            except JobNotFound as error:
                if not self._uncommitted:
                    raise
                hint = "; it was made in a transaction of the caller's, which may not be committed"
                raise JobNotFound(f"{error}{hint}", id=self.id) from None
        return self._read

    def refresh(self) -> Self:
        """Read the row again, now.

        Raises JobNotFound.
        """
        self._read = None
        self._row()
        return self

    @property
    def task(self) -> str:
        """The name of the task."""
        return self._row().task

    @property
    def queue(self) -> str:
        return self._row().queue

    @property
    def state(self) -> State:
        return self._row().state

    @property
    def priority(self) -> int:
        return self._row().priority

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments as they are stored: parameter name → plain JSON value, or Secret."""
        return plain_values(self._row().arguments)

    @property
    def result(self) -> R | None:
        """What the task returned, None unless it is done; typed as declared if the task is known here."""
        text = self._row().result
        if text is None:
            return None
        task = self._runner.tasks.get(self._row().task)
        value: R = json.loads(text) if task is None else task.load_result(text, self._runner.files())
        return value

    @property
    def files(self) -> tuple[StoredFile, ...]:
        """Its files: those of its arguments, then those of its result."""
        from .files import StoredFile

        return tuple(StoredFile(row, self._runner.storage) for row in self._runner.store.files(self.id))

    @property
    def error(self) -> str | None:
        """Why the last attempt did not end well, in one sentence."""
        return self._row().error

    @property
    def user_error(self) -> str | None:
        """What its task has said to its users by a UserError; None if it has not failed by one."""
        from .job import State, user_error

        row = self._row()
        return user_error(row.error) if row.state is State.FAILED else None

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """The attempts that have ended, the first one first."""
        return self._row().attempts

    @property
    def cancel_reason(self) -> str | None:
        """Why somebody asked for its end."""
        return self._row().cancel_reason

    @property
    def cancel_actor(self) -> str | None:
        """Who asked for its end."""
        return self._row().cancel_actor

    @property
    def paused_at(self) -> datetime | None:
        """Since when the running job is to stand still."""
        return self._row().paused_at

    @property
    def cursor(self) -> Any:
        """From where its next attempt goes on, as it said at a safe point."""
        text = self._row().cursor
        return None if text is None else json.loads(text)

    @property
    def run_at(self) -> datetime:
        """Not started before this moment."""
        return self._row().run_at

    @property
    def created_at(self) -> datetime:
        return self._row().created_at

    @property
    def started_at(self) -> datetime | None:
        """When the last attempt started."""
        return self._row().started_at

    @property
    def finished_at(self) -> datetime | None:
        return self._row().finished_at

    @property
    def progress(self) -> dict[str, Any] | None:
        """How far it is, now; see `Runner.progress`."""
        return self._runner.progress(self.id)

    def wait(self, timeout: Duration | None = None, poll: Duration | None = None) -> Self:
        """Wait until the job is done, failed or cancelled, and read it; without `timeout` for ever.

        Looks every `poll` seconds; by default after 5 ms, then ever more rarely, at least 4 times a second.
        Raises:
            WaitTimeout: `timeout` is over; the job goes on.
            JobNotFound: also for a job whose transaction is not committed.
        """
        from .job import ENDED

        limit = None if timeout is None else check_option("delay", timeout, "wait", EnqueueError)
        fixed = None if poll is None else check_option("delay", poll, "wait", EnqueueError)
        start = clock.monotonic()
        pause = _SHORTEST_POLL
        while self.refresh().state not in ENDED:
            step = pause if fixed is None else fixed
            if limit is not None:
                left = start + limit - clock.monotonic()
                if left <= 0:
                    state = self.state
                    message = f"job {self.id} is still {state} after {limit:g} s"
                    raise WaitTimeout(message, id=self.id, state=state)
                step = min(step, left)
            time.sleep(step)  # noqa: TID251 - in the caller's process, which asked for it
            pause = min(pause * 1.5, _LONGEST_POLL)
        return self

    def cancel(self, reason: str | None = None, *, actor: str | None = None) -> Self:
        """Cancel the job: a pending one at once, a running one is ended by its supervisor.

        A running one that uses safe points gets `grace` to reach the next; then, as all others at once, it gets TERM,
        and KILL after another `grace`. Reason and actor of who asks first stay with the job.
        Raises JobStateError when it has ended, JobNotFound.
        """
        self._runner.store.cancel(self.id, reason, actor=actor)
        self._read = None
        return self

    def pause(self) -> Self:
        """Freeze the running job, and all that it has started; its `timeout` does not count meanwhile.

        A cancel ends it all the same. The pause is of the process: a stop of its supervisor lets it go on, and a later
        attempt is not paused. Raises JobStateError when it does not run, JobNotFound.
        """
        self._runner.store.pause(self.id)
        self._read = None
        return self

    def resume(self) -> Self:
        """Let the paused job go on; one that is not paused does anyway.

        Raises JobStateError when it does not run, JobNotFound.
        """
        self._runner.store.resume(self.id)
        self._read = None
        return self

    def retry(self) -> Self:
        """Make an ended job pending again, with all its tries before it.

        Raises JobStateError when it has not ended, JobNotFound.
        """
        self._runner.store.retry(self.id)
        self._read = None
        return self
