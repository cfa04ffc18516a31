"""What clients do with the tables: make jobs, ask how they stand, and leave wishes on them.

Web processes, threads and the command line call this; what always holds is said at the head of store.py.
"""

from __future__ import annotations

import builtins  # Asking.list hides the name in its class
import json
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.engine import Connection

from . import costs
from .access import Access
from .batches import LIMITS, clean, new_row, pack
from .callers import begin, connection_of, make_beside
from .clientsql import JOB, STANDING
from .errors import EnqueueError, JobNotFound, JobStateError
from .filenames import address
from .internal import LOWEST, MAIL
from .job import Outcome, State
from .oldrows import Batch
from .records import Attempt, File, New, Row, Standing
from .schema import jobs
from .statements import WISH

#: Of so many attempts is told what they cost.
COSTS_OF = 10_000
#: Rows of one INSERT of `enqueue`.
_CHUNK = 1000


class Asking(Access):
    """The clients' side of the store."""

    #: A connection of the caller's has been used: a file that was missing is made by then.
    _caller_checked = False
    #: Which queues are served together, as the supervisors' rows said at the last look; see `standing`.
    _served: dict[str, list[str]] | None = None

    # -- making jobs

    def enqueue(self, rows: Sequence[New], *, connection: Any = None, now: datetime | None = None) -> None:
        """Insert rows, all or none, and wake the supervisors.

        With a Session or Connection of the caller they are part of its transaction, which is not committed, rolled
        back or flushed here. Without, they are committed when this returns; an id that is already there is left as it
        is, so that the same call may be made again.

        Raises: EnqueueError for text that no database takes or a connection to another database.
        """
        if not rows:
            return
        files = [file for row in rows for file in row.files]
        single = len(rows) <= _CHUNK and not files
        notify = self.notify and not self._database.makes_itself
        statement = self._client_sql.enqueue_and_notify if notify else self._client_sql.enqueue
        try:
            batches = [
                pack([new_row(row) for row in rows[i : i + _CHUNK]]) for i in range(0, len(rows), _CHUNK)
            ]
        except UnicodeEncodeError:
            raise EnqueueError(
                "expected text of whole Unicode characters, got a lone surrogate", task=rows[0].task
            ) from None

        def work(connection: Connection) -> None:
            moment = self._moment(now)
            for batch in batches:
                connection.execute(statement, {"batch": batch, "now": moment})
            if files:
                self._files.insert(connection, files)

        if connection is None:
            # one statement is its own transaction: one round trip
            self._transactions.run(work, bare=single, repeat=True)
            return
        theirs = connection_of(connection, self._database)
        if not self._caller_checked and self._database.makes_itself:
            make_beside(self._database)
            self._caller_checked = True
        begin(theirs, self._database)
        try:
            work(theirs)
        except exc.DBAPIError as error:
            raise self._database.error_of(error) from error

    # -- questions

    def get(self, id: str) -> Row:
        """Return a row with its attempts. Raises: JobNotFound."""
        job = _id(id)
        rows = self._transactions.read(
            lambda connection: connection.execute(self._client_sql.get, {"id": job}).all()
        )
        if not rows:
            raise JobNotFound(f"no job has the id {id}", id=id)
        width = len(jobs.c)
        return _row(rows[0], tuple(_attempt(row[width:]) for row in rows if row[width] is not None))

    def standing(self, ids: Collection[str], *, now: datetime | None = None) -> dict[str, Standing]:
        """Say how these jobs stand, those that exist, in one statement; an id is as `Runner.get` takes it.

        `position` counts the jobs of all queues that are served together with the job's own, as far as the supervisors'
        rows tell: of all queues, where one names none, or none runs. A file that is missing is not made.
        """
        if self._database.is_missing():
            return {}
        parameters = {"ids": [_id(id) for id in ids], "now": self._moment(now)}
        known = self._served
        rows = self._stand(parameters, known)
        if rows and (told := _served(rows[0][-1])) != known:
            # seldom: since the last look a supervisor of other queues has come or gone
            self._served = told
            rows = self._stand(parameters, told)
        return {row[0]: _standing(row[:-1]) for row in rows}

    def _stand(self, parameters: dict[str, Any], served: dict[str, list[str]] | None) -> Sequence[Any]:
        statement = self._client_sql.standing
        if served is not None:
            statement, parameters = self._client_sql.standing_of_queues, parameters | served
        return self._transactions.read(lambda connection: connection.execute(statement, parameters).all())

    def output(self, id: str, attempt: int) -> str | None:
        """Return what an attempt wrote, head and tail; None if it wrote no more than is in its `output_tail`."""
        parameters = {"job": _id(id), "number": attempt}
        found = self._transactions.read(
            lambda connection: connection.execute(self._client_sql.output_of, parameters).scalar()
        )
        return None if found is None else str(found)

    def files(self, id: str) -> builtins.list[File]:
        """Return the files of a job: those of its arguments, then those of its result."""
        job = _id(id)
        return self._transactions.read(lambda connection: self._files.of_job(connection, job))

    def file(self, token: str) -> File | None:
        """Return the file of a result that may be downloaded with this token; None if there is none, or no database."""
        if self._database.is_missing():
            return None
        return self._transactions.read(lambda connection: self._files.with_token(connection, token))

    def named(self, hashes: Collection[str]) -> set[str]:
        """Return those of these hashes that some job has files of."""
        return self._transactions.read(lambda connection: self._files.named(connection, hashes))

    def database_id(self) -> str:
        """Return what tells this database from all others."""
        return self._transactions.read(lambda connection: self._files.note(connection, "database_id")) or ""

    # -- what is kept no longer

    def count_old(self, keep: float, keep_failed: float, *, now: datetime | None = None) -> int:
        """Return how many jobs have ended longer ago than that, seconds; `keep_failed` is for those that failed."""
        moment = self._moment(now)
        return self._transactions.read(
            lambda connection: self._old.count(connection, keep, keep_failed, moment)
        )

    def delete_old(
        self, keep: float, keep_failed: float, *, after: str, limit: int, now: datetime | None = None
    ) -> Batch:
        """Delete up to `limit` jobs that have ended longer ago, with their attempts, outputs and rows of files.

        One transaction. The oldest of those whose id sorts behind `after` go first; a job that is just made pending
        again is passed over.
        """
        moment = self._moment(now)
        return self._transactions.run(
            lambda connection: self._old.delete(connection, keep, keep_failed, after, limit, moment),
            repeat=True,
        )

    def list(
        self,
        *,
        state: str | None = None,
        queue: str | None = None,
        task: str | None = None,
        limit: int = 50,
        all: bool = False,
    ) -> builtins.list[Row]:
        """Return rows without their attempts, the newest first; mails only with `all`, or if they are named."""
        # a UUIDv7 begins with the time at which it was made
        statement = sa.select(*jobs.c).order_by(jobs.c.id.desc()).limit(limit)
        if not all and MAIL not in (queue, task):
            statement = statement.where(jobs.c.priority > LOWEST)
        for column, value in ((jobs.c.state, state), (jobs.c.queue, queue), (jobs.c.task, task)):
            if value is not None:
                statement = statement.where(column == str(value))
        return [
            _row(row)
            for row in self._transactions.read(lambda connection: connection.execute(statement).all())
        ]

    def counts(self) -> dict[str, dict[str, int]]:
        """Return how many rows each queue has in each state; reads the whole table."""
        found: dict[str, dict[str, int]] = {}
        for queue, state, number in self._transactions.read(
            lambda connection: connection.execute(self._client_sql.counts).all()
        ):
            found.setdefault(queue, {})[state] = number
        return found

    def costs(self, limit: int = COSTS_OF) -> dict[str, dict[str, Any]]:
        """Return percentiles of what the newest `limit` attempts cost, by task; see `costs.of_tasks`."""
        parameters = {"limit": limit}
        return costs.of_tasks(
            self._transactions.read(
                lambda connection: connection.execute(self._client_sql.bills, parameters).all()
            )
        )

    # -- wishes

    def cancel(
        self, id: str, reason: str | None = None, *, actor: str | None = None, now: datetime | None = None
    ) -> State:
        """Cancel a pending job at once (arrow f), or ask the supervisor of a busy one to; return the state now.

        One transaction; who asks first is on record, with the reason. Raises: JobNotFound; JobStateError if it
        has ended.
        """
        parameters = {
            "job": _id(id),
            "reason": clean(reason, LIMITS["error"]),
            "actor": clean(actor, LIMITS["error_type"]),
            "now": self._moment(now),
        }

        def work(connection: Connection) -> State:
            state = connection.execute(self._client_sql.cancel, parameters).scalar()
            if state is None:
                raise self._wrong_state(connection, id, "cancelled", "pending or busy")
            if state == State.BUSY:
                self._wake(connection, WISH)
            return State(state)

        return self._transactions.run(work)

    def pause(self, id: str, *, now: datetime | None = None) -> None:
        """Ask the supervisor of a busy job to freeze it; one that is paused stays so. One transaction.

        The pause is over when the attempt is, however it ends. Raises: JobNotFound; JobStateError if it is not busy.
        """
        self._set_paused(self._client_sql.pause, id, "paused", now)

    def resume(self, id: str, *, now: datetime | None = None) -> None:
        """Ask the supervisor of a busy job to thaw it; one that is not paused goes on. One transaction.

        Raises: JobNotFound; JobStateError if it is not busy.
        """
        self._set_paused(self._client_sql.resume, id, "resumed", now)

    def _set_paused(self, statement: Any, id: str, verb: str, now: datetime | None) -> None:
        parameters = {"job": _id(id), "now": self._moment(now)}

        def work(connection: Connection) -> None:
            if connection.execute(statement, parameters).scalar() is None:
                raise self._wrong_state(connection, id, verb, "busy")
            self._wake(connection, WISH)

        self._transactions.run(work)

    def retry(self, id: str, *, now: datetime | None = None) -> None:
        """Make an ended job pending again, due now, as if it had never failed: arrow h, one transaction.

        Its attempts stay on record, and their numbers go on. Raises: JobNotFound; JobStateError if it has not ended.
        """
        parameters = {"job": _id(id), "now": self._moment(now)}

        def work(connection: Connection) -> None:
            if connection.execute(self._client_sql.retry, parameters).scalar() is None:
                raise self._wrong_state(connection, id, "retried", "done, failed or cancelled")
            self._files.drop_results(connection, _id(id))
            self._wake(connection)

        self._transactions.run(work)

    def _wrong_state(
        self, connection: Connection, id: str, verb: str, expected: str
    ) -> JobNotFound | JobStateError:
        state = connection.execute(self._client_sql.state, {"job": _id(id)}).scalar()
        if state is None:
            return JobNotFound(f"no job has the id {id}", id=id)
        return JobStateError(
            f"job {id} cannot be {verb}: expected it {expected}, it is {state}", id=id, state=State(state)
        )


def _id(id: str) -> str:
    try:
        return str(UUID(id))
    except (ValueError, AttributeError, TypeError):
        raise JobNotFound(f"no job has the id {id!r}", id=id) from None


def _served(told: str | None) -> dict[str, list[str]] | None:
    """Read what the supervisors say of their queues, a line for each (`Renewal.picture`); None: one takes from all."""
    if told is None:
        return None
    groups = [json.loads(line)["queues"] for line in told.split("\n")]
    pairs = {f"{one},{other}" for group in groups for one in group for other in group}
    return {"named": sorted({name for group in groups for name in group}), "pairs": sorted(pairs)}


def _standing(row: Sequence[Any]) -> Standing:
    *facts, position, due_at, file = row
    values = dict(zip(STANDING, facts, strict=True))
    values |= {"state": State(values["state"]), "file": file and address(*file.split("/", 1))}
    return Standing(**values, position=position, due_at=due_at)


def _attempt(row: Sequence[Any]) -> Attempt:
    job, number, outcome, *rest = row
    return Attempt(job, number, Outcome(outcome), *rest)


def _row(row: Sequence[Any], ended: tuple[Attempt, ...] = ()) -> Row:
    values = dict(zip(JOB, row, strict=False))
    return Row(**values | {"state": State(values["state"])}, attempts=ended)
