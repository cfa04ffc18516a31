"""All access to the tables: one method for each thing that is done with them; their only door.

Used by the supervisor (role "supervisor": one thread, one connection, no call may hang) and by whatever enqueues or
asks (role "client": web processes, threads, the command line). Never by a mold or a child on the way of a job.

What always holds:

1. Every method is one transaction or one statement; none is open when a method returns.
2. Every write may be repeated: it is guarded by the row's state, or by its id. So an error during a commit, which
   leaves open whether it happened, is answered by doing the same again; after a claim, by `busy`.
3. A busy row is changed only under its fence: id, attempt, state, supervisor (`finish`, `release`), except that
   `cancel`, `pause` and `resume` leave their wishes on it.
4. Times are compared by one clock: the database's, which for SQLite is the host's.
5. Nothing belongs to the session, so everything works through PgBouncer in transaction mode.
6. A connection is never used, closed or collected in another process than the one that opened it.

The statements are the same on both databases; what differs is in `database.py`. A batch travels as one bound JSON
text, so that a statement is constant, is compiled once, and costs one round trip whatever the size of the batch.

Measured on 2 cores, Python 3.11, a turn of 16 endings and 16 claims with 10,000 rows pending, of which client CPU:

    PostgreSQL 15, Unix socket, fsync off   2.5 ms   0.08 ms a job
    SQLite 3.40, WAL                        1.9 ms   0.12 ms a job, the database's own work included
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.engine import Connection, make_url

from . import clock, costs, revision
from .batches import LARGE, LIMITS, clean, ending_row, first_of, is_large, new_row, pack, without_details
from .callers import begin, connection_of, make_beside
from .database import Database, PostgreSQL, SQLite
from .errors import EnqueueError, JobNotFound, JobStateError, SchemaError, StoreError, StoreUnavailable
from .job import Attempt, Claim, Ending, New, Outcome, Row, Standing, State, SupervisorRow, Wish
from .schema import jobs, supervisors
from .statements import CHANNEL, CLAIM, JOB, SUPERVISOR, WISH, Statements
from .transactions import Transactions

#: Id of a job and number of its attempt.
Key = tuple[str, int]
# In the class, `list` is a method.
Claims = list[Claim]
Endings = list[Ending]
Rows = list[Row]
Supervisors = list[SupervisorRow]
Wishes = list[Wish]
Ids = list[str]

#: Of so many attempts is told what they cost.
COSTS_OF = 10_000
#: Rows of one INSERT of `enqueue`.
_CHUNK = 1000


class Store:
    """The jobs, attempts and supervisors of one database.

    Connects at the first use. The role "client" may be used by several threads; the role "supervisor" belongs to the
    main thread of its process, and none of its calls takes longer than `timeout` seconds (on SQLite none waits
    longer than 50 ms for the lock).

    Every method raises StoreUnavailable when the database is away, silent or locked: the same call may be made again.
    `.busy` is True on it if an SQLite file is locked, which is over in a moment. SchemaError: the tables are
    missing or another release's. StoreError: anything else that the database refuses.
    """

    def __init__(self, url: str, *, role: str = "client", notify: bool = True, timeout: float = 5.0) -> None:
        try:
            parsed = make_url(
                url.replace("postgres://", "postgresql://", 1) if url.startswith("postgres://") else url
            )
        except exc.ArgumentError:
            raise StoreError(
                "expected a database URL as sqlite:///jobs.db or postgresql://host/name"
            ) from None
        kind = {"sqlite": SQLite, "postgresql": PostgreSQL}.get(parsed.get_backend_name())
        if kind is None:
            raise StoreError(
                f"expected a database URL of sqlite or postgresql, got {parsed.get_backend_name()}"
            )
        self.notify = notify
        self.role = role
        self._database: Database = kind(parsed, role, timeout)
        self._statements = Statements(self._database)
        self._transactions = Transactions(self._database, role)
        self._caller_checked = False

    def __repr__(self) -> str:
        return f"<Store {self._database} {self.role}>"

    # -- enqueueing

    def enqueue(self, rows: Sequence[New], *, connection: Any = None, now: datetime | None = None) -> None:
        """Insert rows, all or none, and wake the supervisors.

        With a Session or Connection of the caller they are part of its transaction, which is not committed, rolled
        back or flushed here. Without, they are committed when this returns; an id that is already there is left as it
        is, so that the same call may be made again.

        Raises: EnqueueError for text that no database takes or a connection to another database.
        """
        if not rows:
            return
        single = len(rows) <= _CHUNK
        notify = self.notify and not self._database.makes_itself
        statement = self._statements.enqueue_and_notify if notify else self._statements.enqueue
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

    # -- the way of a job

    def claim(
        self, supervisor: str, limit: int, queues: Sequence[str] | None, *, now: datetime | None = None
    ) -> Claims:
        """Mark up to `limit` due rows busy and return them, the most urgent first: arrow b, atomic.

        A supervisor that is not registered gets none. After StoreUnavailable rows may be busy under this
        supervisor that it does not know of: see `busy`.
        """
        return self._transactions.run(
            lambda connection: self._claim(connection, supervisor, limit, queues, now)
        )

    def _claim(
        self,
        connection: Connection,
        supervisor: str,
        limit: int,
        queues: Sequence[str] | None,
        now: datetime | None,
    ) -> Claims:
        if limit <= 0:
            return []
        parameters = {"supervisor": supervisor, "limit": limit, "now": self._moment(now)}
        statement = self._statements.claim
        if queues is not None:
            statement = self._statements.claim_of_queues
            parameters["queues"] = list(queues)
        return _claims(connection.execute(statement, parameters).all(), limit)

    def batch(self, endings: Iterable[Ending]) -> Endings:
        """Return as many of the first endings as one call of `finish` or `turn` writes well within its time."""
        return first_of(endings)

    def finish(self, endings: Sequence[Ending], *, now: datetime | None = None) -> set[Key]:
        """Write how attempts ended, and what becomes of their rows; return those that it was that ended.

        One transaction. A row that is not busy any more under the ending's id, attempt and supervisor is left as it
        is and its attempt is not written down: a late or double report changes nothing. Text is cleaned and cut to
        what a database takes; an ending that is refused all the same is written without its details, and then the
        endings go in several transactions.
        """
        if not endings:
            return set()
        try:
            return self._transactions.run(lambda connection: self._finish(connection, endings, now))
        except (StoreUnavailable, SchemaError):
            raise
        except StoreError as error:
            return self._finish_singly(endings, now, error)

    def _finish(self, connection: Connection, endings: Sequence[Ending], now: datetime | None) -> set[Key]:
        rows = [ending_row(ending) for ending in endings]
        # one by one: taking 50 MB out of JSON costs seconds, on SQLite once more for each column
        large = [row for row in rows if len(row.get("result", "")) > LARGE]
        results = [
            {"job": row["job_id"], "number": row["attempt"], "text": row.pop("result")} for row in large
        ]
        parameters = {"batch": pack(rows), "now": self._moment(now)}
        if self._database.writes_in_with:
            found = connection.execute(self._statements.end_and_note, parameters)
        else:
            connection.execute(self._statements.note, parameters)
            found = connection.execute(self._statements.end, parameters)
        ended = {(row[0], row[1]) for row in found}
        for result in results:
            if (result["job"], result["number"]) in ended:
                connection.execute(self._statements.result, result)
        if written := [
            {"job": e.attempt.job_id, "number": e.attempt.attempt, "text": clean(e.output)}
            for e in endings
            if e.output is not None and (e.attempt.job_id, e.attempt.attempt) in ended
        ]:
            connection.execute(self._statements.output, written)
        return ended

    def _finish_singly(self, endings: Sequence[Ending], now: datetime | None, error: StoreError) -> set[Key]:
        # by halves: one bad ending among 500 costs some 18 transactions, not 500
        if len(endings) == 1:
            plain = without_details(endings[0], error)
            return self._transactions.run(lambda connection: self._finish(connection, [plain], now))
        middle = len(endings) // 2
        return self.finish(endings[:middle], now=now) | self.finish(endings[middle:], now=now)

    def turn(
        self,
        supervisor: str,
        endings: Sequence[Ending],
        limit: int,
        queues: Sequence[str] | None,
        *,
        now: datetime | None = None,
    ) -> tuple[set[Key], Claims]:
        """Do `finish` and `claim` in one transaction: what a supervisor under load does all the time.

        In one statement where that can be: four round trips less. On a busy machine each of them costs a
        millisecond, because supervisor and server wait for the jobs to leave them a processor.
        """
        can = bool(endings) and limit > 0 and self._database.writes_in_with
        alone = can and not any(map(is_large, endings))

        def work(connection: Connection) -> tuple[set[Key], Claims]:
            if alone and self._database.is_ours(connection):
                return self._finish_and_claim(connection, endings, supervisor, limit, queues, now)
            ended = self._finish(connection, endings, now) if endings else set()
            return ended, self._claim(connection, supervisor, limit, queues, now)

        try:
            return self._transactions.run(work, alone=alone)
        except (StoreUnavailable, SchemaError):
            raise
        except StoreError:
            if not endings:
                raise
            return self.finish(endings, now=now), self.claim(supervisor, limit, queues, now=now)

    def _finish_and_claim(
        self,
        connection: Connection,
        endings: Sequence[Ending],
        supervisor: str,
        limit: int,
        queues: Sequence[str] | None,
        now: datetime | None,
    ) -> tuple[set[Key], Claims]:
        parameters = {
            "batch": pack([ending_row(ending) for ending in endings]),
            "supervisor": supervisor,
            "limit": limit,
            "now": self._moment(now),
        }
        statement = self._statements.turn
        if queues is not None:
            statement = self._statements.turn_of_queues
            parameters["queues"] = list(queues)
        found = connection.execute(statement, parameters).all()
        ended = {(row.id, row.attempt) for row in found if row.ended}
        return ended, _claims([row for row in found if not row.ended], limit)

    def next_due(self, queues: Sequence[str] | None, *, now: datetime | None = None) -> float | None:
        """Return in how many seconds the earliest pending row is due, at least 0; None if none is pending."""
        parameters: dict[str, Any] = {"now": self._moment(now)}
        statement = self._statements.due
        if queues is not None:
            statement = self._statements.due_of_queues
            parameters["queues"] = list(queues)
        due, moment = self._transactions.read(
            lambda connection: connection.execute(statement, parameters).one()
        )
        return None if due is None else max(0.0, (due - moment).total_seconds())

    def release(self, supervisor: str, claims: Collection[Key]) -> int:
        """Give back rows that were claimed and never started, as if they had not been claimed; return how many.

        Arrow e, one transaction. Nothing is written down, the attempt does not count. A request to cancel stays
        on the row: whoever claims it next finds it in `wishes`.
        """
        if not claims:
            return 0
        batch = pack([{"job_id": job, "attempt": attempt} for job, attempt in claims])
        parameters = {"batch": batch, "supervisor": supervisor}
        return self._transactions.run(
            lambda connection: len(connection.execute(self._statements.release, parameters).all())
        )

    def busy(self, supervisor: str) -> set[Key]:
        """Return id and attempt of the rows that are busy under a supervisor."""
        parameters = {"supervisor": supervisor}
        rows = self._transactions.read(
            lambda connection: connection.execute(self._statements.busy, parameters).all()
        )
        return {(row[0], row[1]) for row in rows}

    def wishes(self, supervisor: str) -> Wishes:
        """Return what is wanted of a supervisor's busy rows: those to be cancelled, and those that are paused."""
        parameters = {"supervisor": supervisor}
        rows = self._transactions.read(
            lambda connection: connection.execute(self._statements.wishes, parameters).all()
        )
        return [
            Wish(id, attempt, bool(cancel), reason, actor, bool(paused))
            for id, attempt, cancel, reason, actor, paused in rows
        ]

    # -- supervisors

    def register(self, row: SupervisorRow, lease: float) -> None:
        """Insert a supervisor's row with a lease of that many seconds; if it is there, prolong it."""
        parameters = {name: getattr(row, name) for name in SUPERVISOR}
        self._transactions.run(
            lambda connection: connection.execute(self._statements.register, parameters | self._lease(lease))
        )

    def renew(self, supervisor: str, lease: float, molds: str | None = None) -> bool:
        """Let the lease end that many seconds from now; False: the row is gone, somebody holds us for dead.

        `molds` replaces what the row says of them.
        """
        parameters = {"supervisor": supervisor, "molds": molds} | self._lease(lease)
        return self._transactions.run(
            lambda connection: connection.execute(self._statements.renew, parameters).rowcount > 0
        )

    def _lease(self, lease: float) -> dict[str, Any]:
        return {"lease": lease, "now": self._moment(None)}

    def deregister(self, supervisor: str) -> None:
        """Delete a supervisor's row; what is still busy under it may then be rescued by anybody."""
        parameters = {"supervisor": supervisor}
        self._transactions.run(lambda connection: connection.execute(self._statements.deregister, parameters))

    def supervisors(self) -> Supervisors:
        """Return all supervisors that have a row, the oldest first."""
        columns = [supervisors.c[name] for name in (*SUPERVISOR, "started_at", "lease_until")]
        statement = sa.select(*columns).order_by(supervisors.c.started_at, supervisors.c.id)
        return [
            SupervisorRow(*row)
            for row in self._transactions.read(lambda connection: connection.execute(statement).all())
        ]

    def expire(self, proven_dead: Collection[str], *, now: datetime | None = None) -> Ids:
        """Delete the rows of supervisors whose lease is over or that are proven dead; return their ids.

        What was busy under them is then in `orphans`, for whoever asks first, also after we crash in between.
        """
        parameters = {"dead": list(proven_dead), "now": self._moment(now)}
        return self._transactions.run(
            lambda connection: list(connection.execute(self._statements.expire, parameters).scalars())
        )

    def orphans(self, limit: int) -> Claims:
        """Return busy rows whose supervisor has no row any more, to be finished as `lost`.

        `supervisor` in each is the dead one, which their ending has to name. Several may rescue at once: the
        fence lets one of them end a row.
        """
        rows = self._transactions.read(
            lambda connection: connection.execute(self._statements.orphans, {"limit": limit}).all()
        )
        return [Claim(*row) for row in rows]

    # -- questions and wishes of people

    def get(self, id: str) -> Row:
        """Return a row with its attempts. Raises: JobNotFound."""
        job = _id(id)
        rows = self._transactions.read(
            lambda connection: connection.execute(self._statements.get, {"id": job}).all()
        )
        if not rows:
            raise JobNotFound(f"no job has the id {id}", id=id)
        width = len(jobs.c)
        return _row(rows[0], tuple(_attempt(row[width:]) for row in rows if row[width] is not None))

    def standing(self, ids: Collection[str], *, now: datetime | None = None) -> dict[str, Standing]:
        """Say how these jobs stand, those that exist, in one statement; an id is as `Runner.get` takes it."""
        parameters = {"ids": [_id(id) for id in ids], "now": self._moment(now)}
        rows = self._transactions.read(
            lambda connection: connection.execute(self._statements.standing, parameters).all()
        )
        return {row[0]: Standing(row[0], State(row[1]), *row[2:]) for row in rows}

    def output(self, id: str, attempt: int) -> str | None:
        """Return what an attempt wrote, head and tail; None if it wrote no more than is in its `output_tail`."""
        parameters = {"job": _id(id), "number": attempt}
        found = self._transactions.read(
            lambda connection: connection.execute(self._statements.output_of, parameters).scalar()
        )
        return None if found is None else str(found)

    def list(
        self, *, state: str | None = None, queue: str | None = None, task: str | None = None, limit: int = 50
    ) -> Rows:
        """Return rows without their attempts, the newest first."""
        # a UUIDv7 begins with the time at which it was made
        statement = sa.select(*jobs.c).order_by(jobs.c.id.desc()).limit(limit)
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
            lambda connection: connection.execute(self._statements.counts).all()
        ):
            found.setdefault(queue, {})[state] = number
        return found

    def costs(self, limit: int = COSTS_OF) -> dict[str, dict[str, Any]]:
        """Return percentiles of what the newest `limit` attempts cost, by task; see `costs.of_tasks`."""
        parameters = {"limit": limit}
        return costs.of_tasks(
            self._transactions.read(
                lambda connection: connection.execute(self._statements.bills, parameters).all()
            )
        )

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
            state = connection.execute(self._statements.cancel, parameters).scalar()
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
        self._set_paused(self._statements.pause, id, "paused", now)

    def resume(self, id: str, *, now: datetime | None = None) -> None:
        """Ask the supervisor of a busy job to thaw it; one that is not paused goes on. One transaction.

        Raises: JobNotFound; JobStateError if it is not busy.
        """
        self._set_paused(self._statements.resume, id, "resumed", now)

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
            if connection.execute(self._statements.retry, parameters).scalar() is None:
                raise self._wrong_state(connection, id, "retried", "done, failed or cancelled")
            self._wake(connection)

        self._transactions.run(work)

    def _wrong_state(
        self, connection: Connection, id: str, verb: str, expected: str
    ) -> JobNotFound | JobStateError:
        state = connection.execute(self._statements.state, {"job": _id(id)}).scalar()
        if state is None:
            return JobNotFound(f"no job has the id {id}", id=id)
        return JobStateError(
            f"job {id} cannot be {verb}: expected it {expected}, it is {state}", id=id, state=State(state)
        )

    def _wake(self, connection: Connection, payload: str = "") -> None:
        if self.notify and not self._database.makes_itself:
            connection.execute(sa.select(sa.func.pg_notify(CHANNEL, payload)))

    # -- the tables

    def check_schema(self) -> None:
        """See that the tables are there and of this release; an SQLite file is made if it is missing.

        Raises: SchemaError with what to run.
        """
        self._transactions.ready = False
        self._transactions.read(lambda connection: None)

    def migrate(self) -> tuple[str | None, str]:
        """Bring the tables to this release; return the revision before and after.

        One transaction, all or nothing. Several processes may call it at once: the others wait for the first. Takes
        as long as it takes.
        """
        try:
            return revision.migrate(self._database, self._transactions.open(), self.role)
        except exc.DBAPIError as error:
            raise self._database.error_of(error) from error

    # -- connections

    def close(self) -> None:
        """Close every connection; the next call opens one again."""
        self._transactions.close()

    def forget(self) -> None:
        """Drop every connection without touching it: see `Transactions.forget`."""
        self._transactions.forget()

    def _moment(self, now: datetime | None) -> datetime | None:
        return clock.utc() if now is None and self._database.host_clock else now


def _id(id: str) -> str:
    try:
        return str(UUID(id))
    except (ValueError, AttributeError, TypeError):
        raise JobNotFound(f"no job has the id {id!r}", id=id) from None


def _attempt(row: Sequence[Any]) -> Attempt:
    job, number, outcome, *rest = row
    return Attempt(job, number, Outcome(outcome), *rest)


def _row(row: Sequence[Any], ended: tuple[Attempt, ...] = ()) -> Row:
    values = dict(zip(JOB, row, strict=False))
    return Row(**values | {"state": State(values["state"])}, attempts=ended)


def _claims(rows: Sequence[sa.Row[Any]], limit: int) -> Claims:
    assert len(rows) <= limit, f"claimed {len(rows)} rows for {limit}"
    # RETURNING has no order: here it is that of the index
    width = len(CLAIM)
    ordered = sorted(rows, key=lambda row: (-row.priority, row.run_at, row.id))
    return [Claim(*row[:width]) for row in ordered]
