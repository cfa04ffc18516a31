"""The statements of supervisors: how rows are claimed and ended, how leases are held, and what the dead have left."""

from __future__ import annotations

import functools
from typing import Any

import sqlalchemy as sa

from .schema import ID, attempts, jobs, outputs, supervisors
from .statements import BUSY, CANCELLED, DONE, MAILS, ONE, PENDING, Statements, columns_of

ATTEMPT = tuple(column.name for column in attempts.columns)
CLAIM = (jobs.c.id, jobs.c.task, jobs.c.queue, jobs.c.attempt, jobs.c.tries, jobs.c.crashes, jobs.c.arguments,
          jobs.c.options, jobs.c.created_at, jobs.c.started_at, jobs.c.supervisor, jobs.c.run_at,
          jobs.c.cursor)  # fmt: skip
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

# Of an ending: what it names its row by, and what it says of it.
_FENCE = ("job_id", "attempt", "supervisor", "finished_at", "outcome")
_ENDING = (
    *(jobs.c[name] for name in ("state", "tries", "crashes", "result", "error", "cursor")),
    sa.Column("delay", sa.Double),
)


class SupervisorStatements(Statements):
    """What supervising.py sends."""

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
        kind = jobs.c.priority == MAILS if mails else jobs.c.priority > MAILS
        rows = sa.select(jobs.c.id).where(
            jobs.c.state == PENDING, kind, jobs.c.run_at <= self.database.now, own
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
                state=BUSY,
                supervisor=sa.bindparam("supervisor", type_=sa.Text),
                attempt=jobs.c.attempt + ONE,
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
            jobs.c.state == BUSY,
            jobs.c.supervisor == batch.c.supervisor,
        )

    def _end(self, batch: sa.CTE) -> Any:
        now = self.database.now
        again = batch.c.state == PENDING
        # A cancel that was on record wins over another try, and over the last one. It does not over success; so it is
        # the outcome that is asked: a job whose result could not be stored is failed, and was done.
        cancelled = sa.and_(
            batch.c.state != CANCELLED, batch.c.outcome != DONE, jobs.c.cancel_at.is_not(None)
        )
        return (
            sa.update(jobs)
            .where(self._fence(batch))
            .values(
                state=sa.case((cancelled, CANCELLED), else_=batch.c.state),
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
                    (batch.c.state == DONE, sa.null()),
                    else_=sa.func.coalesce(batch.c.cursor, jobs.c.cursor),
                ),
                error=sa.case(
                    (cancelled, sa.func.coalesce(jobs.c.cancel_reason, batch.c.error, CANCELLED)),
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
        return self._end(self.database.unpack([*columns_of(attempts, *_FENCE), *_ENDING]))

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
    def release(self) -> Any:
        batch = self.database.unpack(columns_of(attempts, "job_id", "attempt"))
        # what `started_at` was before the claim is in the attempt before it
        before = sa.select(attempts.c.started_at).where(
            attempts.c.job_id == jobs.c.id,
            attempts.c.attempt == jobs.c.attempt - ONE,
        )
        return (
            sa.update(jobs)
            .where(
                jobs.c.id == batch.c.job_id,
                jobs.c.attempt == batch.c.attempt,
                jobs.c.state == BUSY,
                jobs.c.supervisor == sa.bindparam("supervisor", type_=sa.Text),
            )
            .values(
                state=PENDING,
                supervisor=sa.null(),
                paused_at=sa.null(),
                attempt=jobs.c.attempt - ONE,
                started_at=before.scalar_subquery(),
            )
            # counted by what comes back: sqlite3 knows no row count of what begins with WITH
            .returning(jobs.c.id)
        )

    def _due(self, queues: bool) -> Any:
        # From one priority to the next, each with a look at the first row in the index: min(run_at) alone reads
        # everything that is scheduled, 3.5 ms for 10,000 rows, and supervisors ask many times a second.
        pending = sa.select(sa.func.max(jobs.c.priority).label("priority")).where(
            jobs.c.state == PENDING, jobs.c.priority > MAILS
        )
        found = pending.cte("found", recursive=True)
        lower = pending.where(jobs.c.priority < found.c.priority).correlate(found).scalar_subquery()
        found = found.union_all(sa.select(lower).where(found.c.priority.is_not(None)))
        first = sa.select(sa.func.min(jobs.c.run_at)).where(
            jobs.c.state == PENDING, jobs.c.priority == found.c.priority, *([_in_queues()] if queues else [])
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
        return sa.select(first, self.database.now).where(jobs.c.state == PENDING, jobs.c.priority == MAILS)

    @functools.cached_property
    def busy(self) -> Any:
        mine = jobs.c.supervisor == sa.bindparam("supervisor", type_=sa.Text)
        return sa.select(jobs.c.id, jobs.c.attempt).where(jobs.c.state == BUSY, mine)

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
        # without ORDER BY: by their ids they would be read out of the whole history, and not out of the index of live rows
        return (
            sa.select(*CLAIM)
            .where(jobs.c.state == BUSY, ~held)
            .limit(sa.bindparam("limit", type_=sa.Integer))
        )


def _in_queues() -> sa.ColumnElement[bool]:
    return jobs.c.queue.in_(sa.bindparam("queues", expanding=True, type_=sa.Text))
