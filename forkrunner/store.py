"""All access to the tables: every statement of forkrunner stands in this file.

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

import itertools
import operator
import os
import sys
import threading
import weakref
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

import msgspec
import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.engine import Connection, Engine, make_url

from . import clock, costs
from .database import BARE, PATIENCE, Database, PostgreSQL, Silent, SQLite, pause
from .errors import EnqueueError, JobNotFound, JobStateError, SchemaError, StoreError, StoreUnavailable
from .job import Attempt, Claim, Ending, New, Next, Outcome, Row, Standing, State, SupervisorRow, Wish
from .schema import REVISION, REVISIONS, jobs, supervisors, to_text, version
from .statements import ATTEMPT, CHANNEL, CLAIM, JOB, SUPERVISOR, WISH, Statements

T = TypeVar("T")
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

# Bytes of UTF-8 of what an outcome may bring along.
_LIMITS = {
    "error": 2 << 10,
    "error_type": 2 << 10,
    "error_message": 16 << 10,
    "traceback": 64 << 10,
    "stacks": 64 << 10,
    "output_tail": 64 << 10,
}
#: Of these the end is worth more than the beginning.
_TAILS = frozenset({"traceback", "output_tail"})

#: Characters of a result that goes in a statement of its own.
_LARGE = 256 << 10
#: How many endings, and characters of them, go well into one call.
_BATCH = 500
_BATCH_SIZE = 4 << 20
#: Rows of one INSERT of `enqueue`.
_CHUNK = 1000
#: A number of our own, so that two migrations wait for each other.
_MIGRATION_LOCK = 0x666F726B


# ----------------------------------------------------------------------------------------- batches

_attempt_values = operator.attrgetter(*ATTEMPT)


def _clean(text: str | None, limit: int | None = None, tail: bool = False) -> str | None:
    """Make text that both databases take: NUL and lone surrogates become visible escapes, too much is cut off.

    For JSON text too: there these two characters mean what the escape says.
    """
    if text is None:
        return None
    # the usual case costs two looks and no copy
    if not text.isascii():
        text = text.encode("utf-8", "backslashreplace").decode()
    if "\0" in text:
        text = text.replace("\0", "\\u0000")
    if limit is None or len(text) * 4 <= limit:
        return text
    data = text.encode()
    if len(data) <= limit:
        return text
    kept = data[-limit:] if tail else data[:limit]
    mark = f"[{len(data) - limit} bytes cut]"
    # half a character at the cut is dropped
    words = kept.decode("utf-8", "ignore")
    return f"{mark} {words}" if tail else f"{words} {mark}"


def _ending(ending: Ending) -> dict[str, Any]:
    """Return an ending as one row of a batch: what is None is left out, and so is NULL."""
    attempt, after = ending.attempt, ending.next
    row: dict[str, Any] = {
        "state": after.state.value,
        "tries": after.tries,
        "crashes": after.crashes,
        "delay": after.delay,
    }
    if ending.result is not None:
        row["result"] = _clean(ending.result)
    if ending.error is not None:
        row["error"] = _clean(ending.error, _LIMITS["error"])
    if ending.cursor is not None:
        row["cursor"] = _clean(ending.cursor)
    for name, value in zip(ATTEMPT, _attempt_values(attempt), strict=True):
        if value is None:
            continue
        kind = type(value)
        if kind is str:
            value = _clean(value, _LIMITS.get(name), name in _TAILS)
        elif kind is datetime:
            value = to_text(value)
        row[name] = value
    return row


def _without_details(ending: Ending, error: Exception) -> Ending:
    """Return what can still be said of an ending that the database refused."""
    attempt, after = ending.attempt, ending.next
    words = f"outcome could not be stored: {error}"
    # without its result it is not done; nor is it run again, for it did run
    state = State.FAILED if after.state is State.DONE else after.state
    return Ending(
        Attempt(attempt.job_id, attempt.attempt, attempt.outcome, attempt.supervisor, error_message=words),
        Next(state, after.tries, after.crashes, after.delay),
        error=words,
    )


def _new(row: New) -> dict[str, Any]:
    for name in ("task", "queue", "arguments", "options"):
        if "\0" in (getattr(row, name) or ""):
            raise EnqueueError(f"expected text without NUL characters as {name}, got some", task=row.task)
    return {
        "id": row.id,
        "task": row.task,
        "queue": row.queue,
        "arguments": row.arguments,
        "priority": row.priority,
        "options": row.options,
        "delay": row.delay,
        "run_at": None if row.run_at is None else to_text(row.run_at),
    }


def _pack(rows: list[dict[str, Any]]) -> str:
    return msgspec.json.encode(rows).decode()


def _is_large(ending: Ending) -> bool:
    """Say whether some of it goes in a statement of its own."""
    return ending.output is not None or len(ending.result or "") > _LARGE


def _claims(rows: Sequence[sa.Row[Any]], limit: int) -> Claims:
    assert len(rows) <= limit, f"claimed {len(rows)} rows for {limit}"
    # RETURNING has no order: here it is that of the index
    width = len(CLAIM)
    ordered = sorted(rows, key=lambda row: (-row.priority, row.run_at, row.id))
    return [Claim(*row[:width]) for row in ordered]


# ------------------------------------------------------------------------------------------- store


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
        self._lock = threading.RLock()
        self._engine: Engine | None = None
        #: Closes the engine: by `close`, when the store is collected, or at the end of the process.
        self._closing: weakref.finalize[Any, Any] | None = None
        #: The tables were seen to be of this release, through this engine.
        self._ready = False
        self._caller_checked = False
        self._process = os.getpid()

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
                _pack([_new(row) for row in rows[i : i + _CHUNK]]) for i in range(0, len(rows), _CHUNK)
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
            self._run(work, bare=single, repeat=True)
            return
        theirs = self._caller_connection(connection)
        try:
            work(theirs)
        except exc.DBAPIError as error:
            raise self._database.error_of(error) from error

    def _caller_connection(self, given: Any) -> Connection:
        found = given
        orm = sys.modules.get("sqlalchemy.orm")
        if orm is not None and isinstance(given, (orm.Session, orm.scoped_session)):
            found = given.connection()
        if not isinstance(found, Connection):
            kind = type(given).__name__
            hint = "a SQLAlchemy Session or Connection"
            if kind.lower().startswith("async"):
                hint += ": inside `await given.run_sync(…)` there is one"
            raise EnqueueError(f"expected as connection {hint}, got {kind}")
        url = found.engine.url
        same = found.dialect.name == self._database.name
        if same and isinstance(self._database, SQLite):
            same = bool(url.database) and os.path.realpath(url.database or "") == os.path.realpath(
                self._database.path
            )
        if not same:
            raise EnqueueError(
                f"expected a connection to the database of the jobs, {self._database}, "
                f"got one to {url.render_as_string(hide_password=True)}"
            )
        if not self._caller_checked and self._database.makes_itself:
            self._make_beside()
            self._caller_checked = True
        if isinstance(self._database, SQLite):
            raw: Any = found.connection.driver_connection
            # sqlite3 begins a transaction by itself before INSERT, but not before the WITH of ours: as the first
            # statement of the caller's transaction it would be committed at once
            if getattr(raw, "isolation_level", None) is not None and not raw.in_transaction:
                found.exec_driver_sql("BEGIN")
        return found

    def _make_beside(self) -> None:
        # through a connection of our own: a look through the caller's would fix its snapshot before the tables are
        # made. Without patience: the caller's own transaction may hold the lock of the file.
        store = Store(self._database.url.render_as_string(hide_password=False), role="supervisor")
        try:
            store.check_schema()
        except StoreUnavailable as error:
            raise SchemaError(
                "the tables of forkrunner are not there yet, and this transaction keeps others from making them: "
                "run `forkrunner migrate` first"
            ) from error
        finally:
            store.close()

    # -- the way of a job

    def claim(
        self, supervisor: str, limit: int, queues: Sequence[str] | None, *, now: datetime | None = None
    ) -> Claims:
        """Mark up to `limit` due rows busy and return them, the most urgent first: arrow b, atomic.

        A supervisor that is not registered gets none. After StoreUnavailable rows may be busy under this
        supervisor that it does not know of: see `busy`.
        """
        return self._run(lambda connection: self._claim(connection, supervisor, limit, queues, now))

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
        chosen: Endings = []
        size = 0
        for ending in itertools.islice(endings, _BATCH):
            attempt = ending.attempt
            texts = (
                ending.result,
                ending.output,
                attempt.error_message,
                attempt.traceback,
                attempt.stacks,
                attempt.output_tail,
            )
            size += sum(len(text) for text in texts if text)
            # at least one, whatever its size
            if chosen and size > _BATCH_SIZE:
                break
            chosen.append(ending)
        return chosen

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
            return self._run(lambda connection: self._finish(connection, endings, now))
        except (StoreUnavailable, SchemaError):
            raise
        except StoreError as error:
            return self._finish_singly(endings, now, error)

    def _finish(self, connection: Connection, endings: Sequence[Ending], now: datetime | None) -> set[Key]:
        rows = [_ending(ending) for ending in endings]
        # one by one: taking 50 MB out of JSON costs seconds, on SQLite once more for each column
        large = [row for row in rows if len(row.get("result", "")) > _LARGE]
        results = [
            {"job": row["job_id"], "number": row["attempt"], "text": row.pop("result")} for row in large
        ]
        parameters = {"batch": _pack(rows), "now": self._moment(now)}
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
            {"job": e.attempt.job_id, "number": e.attempt.attempt, "text": _clean(e.output)}
            for e in endings
            if e.output is not None and (e.attempt.job_id, e.attempt.attempt) in ended
        ]:
            connection.execute(self._statements.output, written)
        return ended

    def _finish_singly(self, endings: Sequence[Ending], now: datetime | None, error: StoreError) -> set[Key]:
        # by halves: one bad ending among 500 costs some 18 transactions, not 500
        if len(endings) == 1:
            plain = _without_details(endings[0], error)
            return self._run(lambda connection: self._finish(connection, [plain], now))
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
        alone = can and not any(map(_is_large, endings))

        def work(connection: Connection) -> tuple[set[Key], Claims]:
            if alone and self._database.is_ours(connection):
                return self._finish_and_claim(connection, endings, supervisor, limit, queues, now)
            ended = self._finish(connection, endings, now) if endings else set()
            return ended, self._claim(connection, supervisor, limit, queues, now)

        try:
            return self._run(work, alone=alone)
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
            "batch": _pack([_ending(ending) for ending in endings]),
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
        due, moment = self._read(lambda connection: connection.execute(statement, parameters).one())
        return None if due is None else max(0.0, (due - moment).total_seconds())

    def release(self, supervisor: str, claims: Collection[Key]) -> int:
        """Give back rows that were claimed and never started, as if they had not been claimed; return how many.

        Arrow e, one transaction. Nothing is written down, the attempt does not count. A request to cancel stays
        on the row: whoever claims it next finds it in `wishes`.
        """
        if not claims:
            return 0
        batch = _pack([{"job_id": job, "attempt": attempt} for job, attempt in claims])
        parameters = {"batch": batch, "supervisor": supervisor}
        return self._run(
            lambda connection: len(connection.execute(self._statements.release, parameters).all())
        )

    def busy(self, supervisor: str) -> set[Key]:
        """Return id and attempt of the rows that are busy under a supervisor."""
        parameters = {"supervisor": supervisor}
        rows = self._read(lambda connection: connection.execute(self._statements.busy, parameters).all())
        return {(row[0], row[1]) for row in rows}

    def wishes(self, supervisor: str) -> Wishes:
        """Return what is wanted of a supervisor's busy rows: those to be cancelled, and those that are paused."""
        parameters = {"supervisor": supervisor}
        rows = self._read(lambda connection: connection.execute(self._statements.wishes, parameters).all())
        return [
            Wish(id, attempt, bool(cancel), reason, actor, bool(paused))
            for id, attempt, cancel, reason, actor, paused in rows
        ]

    # -- supervisors

    def register(self, row: SupervisorRow, lease: float) -> None:
        """Insert a supervisor's row with a lease of that many seconds; if it is there, prolong it."""
        parameters = {name: getattr(row, name) for name in SUPERVISOR}
        self._run(
            lambda connection: connection.execute(self._statements.register, parameters | self._lease(lease))
        )

    def renew(self, supervisor: str, lease: float, molds: str | None = None) -> bool:
        """Let the lease end that many seconds from now; False: the row is gone, somebody holds us for dead.

        `molds` replaces what the row says of them.
        """
        parameters = {"supervisor": supervisor, "molds": molds} | self._lease(lease)
        return self._run(
            lambda connection: connection.execute(self._statements.renew, parameters).rowcount > 0
        )

    def _lease(self, lease: float) -> dict[str, Any]:
        return {"lease": lease, "now": self._moment(None)}

    def deregister(self, supervisor: str) -> None:
        """Delete a supervisor's row; what is still busy under it may then be rescued by anybody."""
        parameters = {"supervisor": supervisor}
        self._run(lambda connection: connection.execute(self._statements.deregister, parameters))

    def supervisors(self) -> Supervisors:
        """Return all supervisors that have a row, the oldest first."""
        columns = [supervisors.c[name] for name in (*SUPERVISOR, "started_at", "lease_until")]
        statement = sa.select(*columns).order_by(supervisors.c.started_at, supervisors.c.id)
        return [
            SupervisorRow(*row) for row in self._read(lambda connection: connection.execute(statement).all())
        ]

    def expire(self, proven_dead: Collection[str], *, now: datetime | None = None) -> Ids:
        """Delete the rows of supervisors whose lease is over or that are proven dead; return their ids.

        What was busy under them is then in `orphans`, for whoever asks first, also after we crash in between.
        """
        parameters = {"dead": list(proven_dead), "now": self._moment(now)}
        return self._run(
            lambda connection: list(connection.execute(self._statements.expire, parameters).scalars())
        )

    def orphans(self, limit: int) -> Claims:
        """Return busy rows whose supervisor has no row any more, to be finished as `lost`.

        `supervisor` in each is the dead one, which their ending has to name. Several may rescue at once: the
        fence lets one of them end a row.
        """
        rows = self._read(
            lambda connection: connection.execute(self._statements.orphans, {"limit": limit}).all()
        )
        return [Claim(*row) for row in rows]

    # -- questions and wishes of people

    def get(self, id: str) -> Row:
        """Return a row with its attempts. Raises: JobNotFound."""
        job = _id(id)
        rows = self._read(lambda connection: connection.execute(self._statements.get, {"id": job}).all())
        if not rows:
            raise JobNotFound(f"no job has the id {id}", id=id)
        width = len(jobs.c)
        return _row(rows[0], tuple(_attempt(row[width:]) for row in rows if row[width] is not None))

    def standing(self, ids: Collection[str], *, now: datetime | None = None) -> dict[str, Standing]:
        """Say how these jobs stand, those that exist, in one statement; an id is as `Runner.get` takes it."""
        parameters = {"ids": [_id(id) for id in ids], "now": self._moment(now)}
        rows = self._read(lambda connection: connection.execute(self._statements.standing, parameters).all())
        return {row[0]: Standing(row[0], State(row[1]), *row[2:]) for row in rows}

    def output(self, id: str, attempt: int) -> str | None:
        """Return what an attempt wrote, head and tail; None if it wrote no more than is in its `output_tail`."""
        parameters = {"job": _id(id), "number": attempt}
        found = self._read(
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
        return [_row(row) for row in self._read(lambda connection: connection.execute(statement).all())]

    def counts(self) -> dict[str, dict[str, int]]:
        """Return how many rows each queue has in each state; reads the whole table."""
        found: dict[str, dict[str, int]] = {}
        for queue, state, number in self._read(
            lambda connection: connection.execute(self._statements.counts).all()
        ):
            found.setdefault(queue, {})[state] = number
        return found

    def costs(self, limit: int = COSTS_OF) -> dict[str, dict[str, Any]]:
        """Return percentiles of what the newest `limit` attempts cost, by task; see `costs.of_tasks`."""
        parameters = {"limit": limit}
        return costs.of_tasks(
            self._read(lambda connection: connection.execute(self._statements.bills, parameters).all())
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
            "reason": _clean(reason, _LIMITS["error"]),
            "actor": _clean(actor, _LIMITS["error_type"]),
            "now": self._moment(now),
        }

        def work(connection: Connection) -> State:
            state = connection.execute(self._statements.cancel, parameters).scalar()
            if state is None:
                raise self._wrong_state(connection, id, "cancelled", "pending or busy")
            if state == State.BUSY:
                self._wake(connection, WISH)
            return State(state)

        return self._run(work)

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

        self._run(work)

    def retry(self, id: str, *, now: datetime | None = None) -> None:
        """Make an ended job pending again, due now, as if it had never failed: arrow h, one transaction.

        Its attempts stay on record, and their numbers go on. Raises: JobNotFound; JobStateError if it has not ended.
        """
        parameters = {"job": _id(id), "now": self._moment(now)}

        def work(connection: Connection) -> None:
            if connection.execute(self._statements.retry, parameters).scalar() is None:
                raise self._wrong_state(connection, id, "retried", "done, failed or cancelled")
            self._wake(connection)

        self._run(work)

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
        self._ready = False
        self._read(lambda connection: None)

    def migrate(self) -> tuple[str | None, str]:
        """Bring the tables to this release; return the revision before and after.

        One transaction, all or nothing. Several processes may call it at once: the others wait for the first. Takes
        as long as it takes.
        """
        try:
            return self._migrate()
        except exc.DBAPIError as error:
            raise self._database.error_of(error) from error

    def _migrate(self) -> tuple[str | None, str]:
        from alembic import command
        from alembic.config import Config

        with self._open().connect() as connection:
            connection = connection.execution_options(**BARE)
            # not the begin of other calls, whose timeouts are for statements of some milliseconds
            if self._database.makes_itself:
                connection.exec_driver_sql("PRAGMA busy_timeout = 10000")
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            else:
                connection.exec_driver_sql("BEGIN")
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})")
            before = self._revision(connection)
            if before is not None and before not in REVISIONS:
                raise self._other_schema(before)
            if before != REVISION:
                config = Config()
                config.set_main_option("script_location", f"{__package__}:migrations")
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
            connection.commit()
            if self._database.makes_itself:
                patience = round(PATIENCE[self.role] * 1000)
                connection.exec_driver_sql(f"PRAGMA busy_timeout = {patience}")
        return before, REVISION

    def _revision(self, connection: Connection) -> str | None:
        if not sa.inspect(connection).has_table(version.name):
            return None
        return connection.execute(sa.select(version.c.version_num)).scalar()

    def _prepare(self, engine: Engine) -> None:
        # once for each engine: a start costs one SELECT, and no import of Alembic
        try:
            with engine.connect() as connection:
                connection.execution_options(**BARE)
                found = connection.execute(sa.select(version.c.version_num)).scalar()
        except exc.DBAPIError as error:
            if not isinstance(self._database.error_of(error), SchemaError):
                raise
            found = None
        if found is None and self._database.makes_itself:
            # an empty file, or none: the connection has just made it
            self._migrate()
        elif found != REVISION:
            raise self._other_schema(found)
        self._ready = True

    def _other_schema(self, found: str | None) -> SchemaError:
        if found is None:
            return SchemaError(
                f"{self._database} has no tables of forkrunner: run `forkrunner migrate`", found=found
            )
        if found in REVISIONS:
            return SchemaError(
                f"the tables in {self._database} are of revision {found}, expected {REVISION}: run `forkrunner migrate`",
                found=found,
            )
        return SchemaError(
            f"the tables in {self._database} are of revision {found}, which is newer than {REVISION}: "
            "install the release of forkrunner that made them",
            found=found,
        )

    # -- connections

    def close(self) -> None:
        """Close every connection; the next call opens one again."""
        with self._lock:
            self._engine, self._ready = None, False
            if self._closing is not None:
                self._closing()

    def forget(self) -> None:
        """Drop every connection without touching it: for a process that inherited them over a fork.

        To close one there would end the parent's session, or with SQLite take its locks and log away; so would
        Python's collecting it. Done by itself after a fork; may be done again.
        """
        # another thread may have held it at the fork, and that thread is not here
        self._lock = threading.RLock()
        self._engine, self._ready = None, False
        self._process = os.getpid()
        if self._closing is not None:
            self._closing.detach()
            self._closing = None
            self._database.abandon()

    def _open(self) -> Engine:
        if self._process != os.getpid():
            self.forget()
        engine = self._engine
        if engine is None:
            with self._lock:
                engine = self._engine
                if engine is None:
                    _watch_forks(self)
                    engine = self._database.engine()
                    self._closing = weakref.finalize(self, _close, self._database, engine, os.getpid())
                    self._engine = engine
        return engine

    def _moment(self, now: datetime | None) -> datetime | None:
        return clock.utc() if now is None and self._database.host_clock else now

    def _read(self, work: Callable[[Connection], T]) -> T:
        return self._run(work, bare=True, repeat=True)

    def _run(
        self,
        work: Callable[[Connection], T],
        *,
        bare: bool = False,
        alone: bool = False,
        repeat: bool = False,
    ) -> T:
        """Do `work` in a transaction, or `bare`: each statement by itself.

        `alone`: the work is one statement where the session is ours, and then that is the transaction.

        A connection of the pool may have died since it was used last. That shows when the transaction begins; then,
        or if the work may be done twice anyway (`repeat`), it is tried once more on a new one.
        """
        database = self._database
        patience = clock.monotonic() + PATIENCE[self.role]
        fresh = False
        while True:
            begun = False
            try:
                database.check()
                with database.deadline():
                    engine = self._open()
                    if not self._ready:
                        self._prepare(engine)
                    with engine.connect() as connection:
                        if alone and database.is_ours(connection):
                            # from here on an error leaves open whether it happened
                            begun = bare = True
                        if bare:
                            connection.execution_options(**BARE)
                            return work(connection)
                        with connection.begin():
                            begun = True
                            return work(connection)
            except Silent as silence:
                self.close()
                raise database.error_of(silence) from silence
            except exc.TimeoutError as full:
                raise StoreUnavailable(f"{database}: all connections of this process are in use") from full
            except exc.DBAPIError as failed:
                error = database.error_of(failed)
                if isinstance(error, StoreUnavailable) and error.busy and clock.monotonic() < patience:
                    pause(0.01)
                elif failed.connection_invalidated and not fresh and (repeat or not begun):
                    fresh = True
                else:
                    if isinstance(error, SchemaError):
                        self._ready = False
                    raise error from failed
            except StoreError as error:
                if error.facts.get("replaced"):
                    # said once; the next call opens, or makes, the file that is there now
                    self.close()
                raise


def _close(database: Database, engine: Engine, process: int) -> None:
    if os.getpid() != process:
        return
    engine.dispose()
    database.close()


# Stores with connections, to be told of a fork. A weak set: it must not keep a store alive.
_stores: weakref.WeakSet[Store] = weakref.WeakSet()
_watching = False


def _watch_forks(store: Store) -> None:
    global _watching
    _stores.add(store)
    if not _watching:
        # at the first connection and not at import, which changes nothing in the process
        os.register_at_fork(after_in_child=_forget_all)
        _watching = True


def _forget_all() -> None:
    for store in tuple(_stores):
        store.forget()


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
