"""The statements of the store, the same on both databases: built once, with parameters bound by name.

Used by the store only. Parameters: `batch` (JSON text, a list of objects), `now`, and others by name.
"""

from __future__ import annotations

import functools
from typing import Any

import sqlalchemy as sa

from .database import Database
from .internal import LOWEST, MAIL
from .schema import ID, attempts, files, jobs, outputs, supervisors

#: Of NOTIFY. The payload is the name of a queue that has a new job, or this: somebody wants something of a
#: running job. No queue can be called so.
CHANNEL, WISH = "forkrunner", "!"

JOB = tuple(column.name for column in jobs.columns)
ATTEMPT = tuple(column.name for column in attempts.columns)
STANDING = ("id", "state", "attempt", "run_at", "created_at", "started_at", "finished_at", "error")
CLAIM = (jobs.c.id, jobs.c.task, jobs.c.queue, jobs.c.attempt, jobs.c.tries, jobs.c.crashes, jobs.c.arguments,
          jobs.c.options, jobs.c.created_at, jobs.c.started_at, jobs.c.supervisor, jobs.c.run_at,
          jobs.c.cursor)  # fmt: skip

# As literals: only from these can a database prove that the index of live rows has what is asked for.
_PENDING = sa.literal_column("'pending'", sa.Text)
_BUSY = sa.literal_column("'busy'", sa.Text)
_DONE = sa.literal_column("'done'", sa.Text)
_CANCELLED = sa.literal_column("'cancelled'", sa.Text)
_LOWEST = sa.literal_column(str(LOWEST), sa.Integer)
_ZERO = sa.literal_column("0", sa.Integer)


class Statements:
    """The statements, built once for each kind of database. Parameters: `batch` (JSON), `now`, and by name."""

    def __init__(self, database: Database) -> None:
        self.database = database

    @functools.cached_property
    def enqueue(self) -> sa.Executable:
        database = self.database
        fresh = _columns(jobs, "id", "task", "queue", "arguments", "priority", "run_at", "options")
        batch = database.unpack([*fresh, sa.Column("delay", sa.Double)])
        values = {
            **{column.name: batch.c[column.name] for column in fresh},
            "run_at": sa.func.coalesce(batch.c.run_at, database.later(database.now, batch.c.delay)),
            "state": _PENDING,
            "created_at": database.now,
            "attempt": _ZERO,
            "tries": _ZERO,
            "crashes": _ZERO,
        }
        # WHERE, because after a bare FROM SQLite takes ON for the beginning of a join
        rows = sa.select(*values.values()).select_from(batch).where(batch.c.id.is_not(None))
        insert = database.insert(jobs).from_select(list(values), rows, include_defaults=False)
        # the same call again, after an error that left open whether it was committed, changes nothing
        return insert.on_conflict_do_nothing(index_elements=[jobs.c.id])  # type: ignore[no-any-return]

    @functools.cached_property
    def enqueue_and_notify(self) -> sa.Executable:
        fresh = self.enqueue.returning(jobs.c.queue).cte("fresh")  # type: ignore[attr-defined]
        queues = sa.select(fresh.c.queue).distinct().subquery("queues")
        return sa.select(sa.func.pg_notify(CHANNEL, queues.c.queue))

    # The one hard statement. Two supervisors ask at once:
    #
    # - FOR UPDATE SKIP LOCKED lets each pass over the rows that the other is about to mark, so neither waits and no
    #   row goes to both. (SQLite has no such thing and needs none: BEGIN IMMEDIATE lets in one at a time.)
    # - The rows are chosen in a materialized CTE of their own. With `UPDATE … WHERE id IN (SELECT … LIMIT 5 FOR
    #   UPDATE SKIP LOCKED)` the planner may run the subquery once for each row: 2,000 rows were claimed for 5.
    # - READ COMMITTED (see `begin`): under REPEATABLE READ the second of two gets a serialization error.
    # - The index forkrunner_jobs_live yields them in order, so LIMIT ends the search, in 0.2 ms for 16 of 10,000.
    #   Rows that are not due yet, or of another queue, are passed over within the index: with 30,000 of them
    #   before the end a claim takes 2.4 ms (SQLite 9 ms), so do not schedule millions of jobs months ahead.
    # - Whoever has lost its row in forkrunner_supervisors gets nothing: its claims would be taken for
    #   orphans at once, and run twice.
    #
    # Mails have a priority that no other job has, so that each kind is a range of the index.
    def _picked(self, queues: bool, mails: bool = False) -> sa.CTE:
        own = sa.exists().where(supervisors.c.id == sa.bindparam("supervisor", type_=sa.Text))
        kind = jobs.c.priority == _LOWEST if mails else jobs.c.priority > _LOWEST
        rows = sa.select(jobs.c.id).where(
            jobs.c.state == _PENDING, kind, jobs.c.run_at <= self.database.now, own
        )
        if queues:
            rows = rows.where(_in_queues())
        rows = rows.order_by(jobs.c.priority.desc(), jobs.c.run_at, jobs.c.id)
        rows = rows.limit(sa.bindparam("limit", type_=sa.Integer))
        return rows.with_for_update(skip_locked=True, of=jobs).cte("picked").prefix_with("MATERIALIZED")

    def _claim(self, queues: bool, mails: bool = False) -> Any:
        picked = self._picked(queues, mails)
        return (
            sa.update(jobs)
            .where(jobs.c.id == picked.c.id)
            .values(
                state=_BUSY,
                supervisor=sa.bindparam("supervisor", type_=sa.Text),
                attempt=jobs.c.attempt + sa.literal_column("1", sa.Integer),
                started_at=self.database.now,
            )
            .returning(*CLAIM, jobs.c.priority)
        )

    @functools.cached_property
    def claim(self) -> Any:
        return self._claim(False)

    @functools.cached_property
    def claim_of_queues(self) -> Any:
        return self._claim(True)

    @functools.cached_property
    def claim_mails(self) -> Any:
        return self._claim(False, mails=True)

    def _fence(self, batch: sa.CTE) -> sa.ColumnElement[bool]:
        return sa.and_(
            jobs.c.id == batch.c.job_id,
            jobs.c.attempt == batch.c.attempt,
            jobs.c.state == _BUSY,
            jobs.c.supervisor == batch.c.supervisor,
        )

    def _end(self, batch: sa.CTE) -> Any:
        now = self.database.now
        again = batch.c.state == _PENDING
        # A cancel that was on record wins over another try, and over the last one. It does not over success; so it is
        # the outcome that is asked: a job whose result could not be stored is failed, and was done.
        cancelled = sa.and_(
            batch.c.state != _CANCELLED, batch.c.outcome != _DONE, jobs.c.cancel_at.is_not(None)
        )
        return (
            sa.update(jobs)
            .where(self._fence(batch))
            .values(
                state=sa.case((cancelled, _CANCELLED), else_=batch.c.state),
                supervisor=sa.null(),
                tries=batch.c.tries,
                crashes=batch.c.crashes,
                run_at=sa.case((again, self.database.later(now, batch.c.delay)), else_=jobs.c.run_at),
                finished_at=sa.case(
                    (sa.and_(again, ~cancelled), sa.null()),
                    else_=sa.func.coalesce(batch.c.finished_at, now),
                ),
                result=batch.c.result,
                paused_at=sa.null(),
                # what failed or was cancelled goes on there if it is retried
                cursor=sa.case(
                    (batch.c.state == _DONE, sa.null()),
                    else_=sa.func.coalesce(batch.c.cursor, jobs.c.cursor),
                ),
                error=sa.case(
                    (cancelled, sa.func.coalesce(jobs.c.cancel_reason, batch.c.error, _CANCELLED)),
                    else_=batch.c.error,
                ),
            )
            .returning(jobs.c.id, jobs.c.attempt, jobs.c.state)
        )

    def _note(self, batch: sa.CTE, ended: sa.FromClause, on: sa.ColumnElement[bool]) -> Any:
        rows = sa.select(*(batch.c[name] for name in ATTEMPT)).select_from(batch.join(ended, on))
        return self.database.insert(attempts).from_select(ATTEMPT, rows).on_conflict_do_nothing()

    @functools.cached_property
    def end(self) -> Any:
        """Write what becomes of the rows: arrows c, d, e, g of job.py."""
        return self._end(self.database.unpack([*_columns(attempts, *_FENCE), *_ENDING]))

    @functools.cached_property
    def note(self) -> Any:
        """Write down the attempts of the rows that `end`, sent next in the same transaction, will end."""
        batch = self.database.unpack(attempts.c)
        return self._note(batch, jobs, self._fence(batch))

    def _ended_and_noted(self) -> tuple[sa.CTE, sa.CTE]:
        columns = {column.name: column for column in (*attempts.c, *_ENDING)}
        batch = self.database.unpack(columns.values())
        ended = self._end(batch).cte("ended")
        on = sa.and_(ended.c.id == batch.c.job_id, ended.c.attempt == batch.c.attempt)
        return ended, self._note(batch, ended, on).cte("noted")

    @functools.cached_property
    def end_and_note(self) -> Any:
        """Do both in one statement, where a WITH may write: `note` takes what `end` returns."""
        ended, noted = self._ended_and_noted()
        return sa.select(ended.c.id, ended.c.attempt, ended.c.state).add_cte(noted)

    def _turn(self, queues: bool) -> Any:
        ended, noted = self._ended_and_noted()
        claimed = self._claim(queues).cte("claimed")
        known = {"id": ended.c.id, "attempt": ended.c.attempt}
        blanks = (known.get(column.name, sa.null()) for column in claimed.c)
        first = sa.select(*blanks, ended.c.state.label("became")).select_from(ended).add_cte(noted)
        return sa.select(*claimed.c, sa.cast(sa.null(), sa.Text).label("became")).union_all(first)

    @functools.cached_property
    def turn(self) -> Any:
        """Do `end_and_note` and `claim` in one statement; a row that says what it `became` has an id and an attempt beside."""
        return self._turn(False)

    @functools.cached_property
    def turn_of_queues(self) -> Any:
        return self._turn(True)

    @functools.cached_property
    def result(self) -> Any:
        """Add the result to a row that the same transaction has ended."""
        own = sa.and_(jobs.c.id == sa.bindparam("job", type_=ID), jobs.c.attempt == sa.bindparam("number"))
        return sa.update(jobs).where(own).values(result=sa.bindparam("text", type_=sa.Text))

    @functools.cached_property
    def output(self) -> Any:
        """Keep what an attempt wrote that the same transaction has ended."""
        values = {
            "job_id": sa.bindparam("job", type_=ID),
            "attempt": sa.bindparam("number", type_=sa.Integer),
            "text": sa.bindparam("text", type_=sa.Text),
        }
        return self.database.insert(outputs).values(values).on_conflict_do_nothing()

    @functools.cached_property
    def output_of(self) -> Any:
        own = sa.and_(
            outputs.c.job_id == sa.bindparam("job", type_=ID), outputs.c.attempt == sa.bindparam("number")
        )
        return sa.select(outputs.c.text).where(own)

    @functools.cached_property
    def release(self) -> Any:
        batch = self.database.unpack(_columns(attempts, "job_id", "attempt"))
        # what `started_at` was before the claim is in the attempt before it
        before = sa.select(attempts.c.started_at).where(
            attempts.c.job_id == jobs.c.id,
            attempts.c.attempt == jobs.c.attempt - sa.literal_column("1", sa.Integer),
        )
        return (
            sa.update(jobs)
            .where(
                jobs.c.id == batch.c.job_id,
                jobs.c.attempt == batch.c.attempt,
                jobs.c.state == _BUSY,
                jobs.c.supervisor == sa.bindparam("supervisor", type_=sa.Text),
            )
            .values(
                state=_PENDING,
                supervisor=sa.null(),
                paused_at=sa.null(),
                attempt=jobs.c.attempt - sa.literal_column("1", sa.Integer),
                started_at=before.scalar_subquery(),
            )
            # counted by what comes back: sqlite3 knows no row count of what begins with WITH
            .returning(jobs.c.id)
        )

    def _due(self, queues: bool) -> Any:
        # From one priority to the next, each with a look at the first row in the index: min(run_at) alone reads
        # everything that is scheduled, 3.5 ms for 10,000 rows, and supervisors ask many times a second.
        pending = sa.select(sa.func.max(jobs.c.priority).label("priority")).where(
            jobs.c.state == _PENDING, jobs.c.priority > _LOWEST
        )
        found = pending.cte("found", recursive=True)
        lower = pending.where(jobs.c.priority < found.c.priority).correlate(found).scalar_subquery()
        found = found.union_all(sa.select(lower).where(found.c.priority.is_not(None)))
        first = sa.select(sa.func.min(jobs.c.run_at)).where(
            jobs.c.state == _PENDING, jobs.c.priority == found.c.priority, *([_in_queues()] if queues else [])
        )
        return sa.select(
            sa.func.min(first.correlate(found).scalar_subquery()), self.database.now
        ).select_from(found)

    @functools.cached_property
    def due(self) -> Any:
        return self._due(False)

    @functools.cached_property
    def due_of_queues(self) -> Any:
        return self._due(True)

    @functools.cached_property
    def mail_due(self) -> Any:
        first = sa.func.min(jobs.c.run_at)
        return sa.select(first, self.database.now).where(jobs.c.state == _PENDING, jobs.c.priority == _LOWEST)

    @functools.cached_property
    def busy(self) -> Any:
        mine = jobs.c.supervisor == sa.bindparam("supervisor", type_=sa.Text)
        return sa.select(jobs.c.id, jobs.c.attempt).where(jobs.c.state == _BUSY, mine)

    @functools.cached_property
    def wishes(self) -> Any:
        wanted = sa.or_(jobs.c.cancel_at.is_not(None), jobs.c.paused_at.is_not(None))
        return self.busy.add_columns(
            jobs.c.cancel_at.is_not(None),
            jobs.c.cancel_reason,
            jobs.c.cancel_actor,
            jobs.c.paused_at.is_not(None),
        ).where(wanted)

    @functools.cached_property
    def register(self) -> Any:
        values: dict[str, Any] = {name: sa.bindparam(name) for name in SUPERVISOR}
        values["started_at"] = self.database.now
        values["lease_until"] = self._lease
        insert = self.database.insert(supervisors).values(values)
        return insert.on_conflict_do_update(
            index_elements=[supervisors.c.id], set_={"lease_until": self._lease}
        )

    @property
    def _lease(self) -> sa.ColumnElement[Any]:
        return self.database.later(self.database.now, sa.bindparam("lease", type_=sa.Double))

    @functools.cached_property
    def renew(self) -> Any:
        own = supervisors.c.id == sa.bindparam("supervisor", type_=sa.Text)
        molds = sa.func.coalesce(sa.bindparam("molds", type_=sa.Text), supervisors.c.molds)
        return sa.update(supervisors).where(own).values(lease_until=self._lease, molds=molds)

    @functools.cached_property
    def deregister(self) -> Any:
        return sa.delete(supervisors).where(supervisors.c.id == sa.bindparam("supervisor", type_=sa.Text))

    @functools.cached_property
    def expire(self) -> Any:
        dead = supervisors.c.id.in_(sa.bindparam("dead", expanding=True, type_=sa.Text))
        over = supervisors.c.lease_until < self.database.now
        return sa.delete(supervisors).where(sa.or_(over, dead)).returning(supervisors.c.id)

    @functools.cached_property
    def orphans(self) -> Any:
        held = sa.exists().where(supervisors.c.id == jobs.c.supervisor)
        # in no order: the history, not the index of live rows, has them in that of their ids
        return (
            sa.select(*CLAIM)
            .where(jobs.c.state == _BUSY, ~held)
            .limit(sa.bindparam("limit", type_=sa.Integer))
        )

    @functools.cached_property
    def get(self) -> Any:
        rows = sa.select(*jobs.c, *attempts.c).outerjoin_from(jobs, attempts, attempts.c.job_id == jobs.c.id)
        return rows.where(jobs.c.id == sa.bindparam("id", type_=ID)).order_by(attempts.c.attempt)

    def _standing(self, queues: bool) -> Any:
        ahead, now = jobs.alias("ahead"), self.database.now
        served = _served_with(ahead) if queues else sa.true()
        waits = jobs.c.state == _PENDING
        most = sa.literal_column("1000", sa.Integer)
        # in the order of the index, or PostgreSQL reads all that wait before it counts: 15 ms instead of 1
        pending = (
            sa.select(_ZERO.label("one"))
            .where(ahead.c.state == _PENDING, ahead.c.run_at <= now, served)
            .order_by(ahead.c.priority.desc(), ahead.c.run_at, ahead.c.id)
            .limit(most)
            .correlate(jobs)
        )
        sooner = sa.tuple_(ahead.c.run_at, ahead.c.id) < sa.tuple_(jobs.c.run_at, jobs.c.id)
        higher = pending.where(ahead.c.priority > jobs.c.priority)
        equal = pending.where(ahead.c.priority == jobs.c.priority, ahead.c.run_at <= jobs.c.run_at, sooner)
        # In two parts: with an OR PostgreSQL takes 5 ms instead of 1, with 50,000 that wait (SQLite 0.3). Where all of these
        # are of queues that are served elsewhere they are passed over within the index, in 23 ms on both.
        parts = (sa.select(part.subquery()) for part in (higher, equal))
        few = sa.union_all(*parts).limit(most).subquery("few")
        position = sa.select(sa.func.count()).select_from(few).scalar_subquery()
        columns = [jobs.c[name] for name in STANDING]
        # of one that is not due yet nobody knows who will be there by then
        early = sa.and_(waits, jobs.c.run_at > now)
        place = sa.case((early, None), (waits, position))
        file = (
            sa.select(files.c.token + sa.literal_column("'/'", sa.Text) + files.c.name)
            .where(files.c.job_id == jobs.c.id, files.c.place == sa.literal_column("'result'", sa.Text))
            .scalar_subquery()
        )
        only_there = sa.case((jobs.c.state == _DONE, file))
        due_at = sa.case((early, jobs.c.run_at))
        return sa.select(*columns, place, due_at, only_there, self._named_queues()).where(
            jobs.c.id.in_(sa.bindparam("ids", expanding=True, type_=ID))
        )

    def _named_queues(self) -> sa.ColumnElement[Any]:
        """Return what the supervisors say of their queues, a line for each; NULL if one takes from all, or none is there."""
        # no JSON in SQL: the two databases have not one word of that in common
        names = supervisors.c.molds.contains(sa.literal_column("'\"queues\"'", sa.Text))
        told = sa.func.aggregate_strings(supervisors.c.molds, "\n")
        all_name = sa.func.count() == sa.func.count(sa.case((names, _ZERO)))
        return sa.select(sa.case((all_name, told))).scalar_subquery()

    @functools.cached_property
    def standing(self) -> Any:
        """Say how some jobs stand, and who is ahead in all queues: counted in the index of live rows, and only to 1000."""
        return self._standing(False)

    @functools.cached_property
    def standing_of_queues(self) -> Any:
        """The same, where all supervisors name their queues: `named` are those, `pairs` which of them one serves together."""
        return self._standing(True)

    @functools.cached_property
    def bills(self) -> Any:
        # the newest by the primary key, whose ids begin with the time: as quick with a hundred thousand as with ten
        newest = (
            sa.select(attempts)
            .order_by(attempts.c.job_id.desc())
            .limit(sa.bindparam("limit", type_=sa.Integer))
        )
        found = newest.subquery("newest").c
        return sa.select(
            found.task,
            found.run_seconds,
            found.waited_seconds,
            found.cpu_user_seconds + found.cpu_system_seconds,
            found.peak_memory_bytes,
        ).where(found.task.is_not(None), found.task != MAIL, found.run_seconds.is_not(None))

    @functools.cached_property
    def counts(self) -> Any:
        rows = sa.select(jobs.c.queue, jobs.c.state, sa.func.count()).where(jobs.c.priority > _LOWEST)
        return rows.group_by(jobs.c.queue, jobs.c.state)

    @functools.cached_property
    def cancel(self) -> Any:
        now, reason = self.database.now, sa.bindparam("reason", type_=sa.Text)
        actor = sa.bindparam("actor", type_=sa.Text)
        pending, first = jobs.c.state == _PENDING, jobs.c.cancel_at.is_(None)
        return (
            sa.update(jobs)
            .where(jobs.c.id == sa.bindparam("job", type_=ID), sa.or_(pending, jobs.c.state == _BUSY))
            .values(
                state=sa.case((pending, _CANCELLED), else_=jobs.c.state),
                finished_at=sa.case((pending, now), else_=jobs.c.finished_at),
                error=sa.case((pending, sa.func.coalesce(reason, _CANCELLED)), else_=jobs.c.error),
                # the first to ask is the one on record
                cancel_at=sa.func.coalesce(jobs.c.cancel_at, now),
                cancel_reason=sa.case((first, reason), else_=jobs.c.cancel_reason),
                cancel_actor=sa.case((first, actor), else_=jobs.c.cancel_actor),
            )
            .returning(jobs.c.state)
        )

    @functools.cached_property
    def pause(self) -> Any:
        return self._set_paused(sa.func.coalesce(jobs.c.paused_at, self.database.now))

    @functools.cached_property
    def resume(self) -> Any:
        return self._set_paused(sa.null())

    def _set_paused(self, value: sa.ColumnElement[Any]) -> Any:
        own = sa.and_(jobs.c.id == sa.bindparam("job", type_=ID), jobs.c.state == _BUSY)
        return sa.update(jobs).where(own).values(paused_at=value).returning(jobs.c.id)

    @functools.cached_property
    def retry(self) -> Any:
        live = sa.or_(jobs.c.state == _PENDING, jobs.c.state == _BUSY)
        cleared = ("finished_at", "result", "error", "cancel_at", "cancel_reason", "cancel_actor")
        return (
            sa.update(jobs)
            .where(jobs.c.id == sa.bindparam("job", type_=ID), ~live)
            .values(
                state=_PENDING,
                run_at=self.database.now,
                tries=_ZERO,
                crashes=_ZERO,
                **dict.fromkeys(cleared, sa.null()),
            )
            .returning(jobs.c.queue)
        )

    @functools.cached_property
    def state(self) -> Any:
        return sa.select(jobs.c.state).where(jobs.c.id == sa.bindparam("job", type_=ID))


# Of an ending: what it names its row by, and what it says of it.
_FENCE = ("job_id", "attempt", "supervisor", "finished_at", "outcome")
_ENDING = (
    *(jobs.c[name] for name in ("state", "tries", "crashes", "result", "error", "cursor")),
    sa.Column("delay", sa.Double),
)
SUPERVISOR = (
    "id",
    "host",
    "boot_id",
    "pid_namespace",
    "pid",
    "start_ticks",
    "target",
    "slots",
    "version",
    "molds",
)


def _columns(table: sa.Table, *names: str) -> list[sa.Column[Any]]:
    return [table.c[name] for name in names]


def _in_queues() -> sa.ColumnElement[bool]:
    return jobs.c.queue.in_(sa.bindparam("queues", expanding=True, type_=sa.Text))


def _served_with(ahead: Any) -> sa.ColumnElement[bool]:
    # As one text, since PostgreSQL hashes a list of texts and walks through one of rows; no queue has a comma in its name.
    # A job whose queue nobody serves waits behind all others.
    pair = jobs.c.queue + sa.literal_column("','", sa.Text) + ahead.c.queue
    return sa.or_(
        ahead.c.queue == jobs.c.queue,
        pair.in_(sa.bindparam("pairs", expanding=True, type_=sa.Text)),
        jobs.c.queue.not_in(sa.bindparam("named", expanding=True, type_=sa.Text)),
    )
