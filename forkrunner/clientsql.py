"""The statements of clients: how jobs are made, how they stand, and what is wanted of them."""

from __future__ import annotations

import functools
from typing import Any

import sqlalchemy as sa

from .internal import MAIL
from .schema import ID, attempts, files, jobs, outputs, supervisors
from .statements import BUSY, CANCELLED, CHANNEL, DONE, MAILS, PENDING, ZERO, Statements, columns_of

JOB = tuple(column.name for column in jobs.columns)
STANDING = ("id", "state", "attempt", "run_at", "created_at", "started_at", "finished_at", "error")


class ClientStatements(Statements):
    """What asking.py sends."""

    @functools.cached_property
    def enqueue(self) -> sa.Executable:
        database = self.database
        fresh = columns_of(jobs, "id", "task", "queue", "arguments", "priority", "run_at", "options")
        batch = database.unpack([*fresh, sa.Column("delay", sa.Double)])
        values = {
            **{column.name: batch.c[column.name] for column in fresh},
            "run_at": sa.func.coalesce(batch.c.run_at, database.later(database.now, batch.c.delay)),
            "state": PENDING,
            "created_at": database.now,
            "attempt": ZERO,
            "tries": ZERO,
            "crashes": ZERO,
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

    @functools.cached_property
    def get(self) -> Any:
        rows = sa.select(*jobs.c, *attempts.c).outerjoin_from(jobs, attempts, attempts.c.job_id == jobs.c.id)
        return rows.where(jobs.c.id == sa.bindparam("id", type_=ID)).order_by(attempts.c.attempt)

    @functools.cached_property
    def output_of(self) -> Any:
        own = sa.and_(
            outputs.c.job_id == sa.bindparam("job", type_=ID), outputs.c.attempt == sa.bindparam("number")
        )
        return sa.select(outputs.c.text).where(own)

    def _standing(self, queues: bool) -> Any:
        ahead, now = jobs.alias("ahead"), self.database.now
        served = _served_with(ahead) if queues else sa.true()
        waits = jobs.c.state == PENDING
        most = sa.literal_column("1000", sa.Integer)
        # in the order of the index, or PostgreSQL reads all that wait before it counts: 15 ms instead of 1
        pending = (
            sa.select(ZERO.label("one"))
            .where(ahead.c.state == PENDING, ahead.c.run_at <= now, served)
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
        only_there = sa.case((jobs.c.state == DONE, file))
        due_at = sa.case((early, jobs.c.run_at))
        return sa.select(*columns, place, due_at, only_there, self._named_queues()).where(
            jobs.c.id.in_(sa.bindparam("ids", expanding=True, type_=ID))
        )

    def _named_queues(self) -> sa.ColumnElement[Any]:
        """Return what the supervisors say of their queues, a line for each; NULL if one takes from all, or none is there."""
        # no JSON in SQL: the two databases have not one word of that in common
        names = supervisors.c.molds.contains(sa.literal_column("'\"queues\"'", sa.Text))
        told = sa.func.aggregate_strings(supervisors.c.molds, "\n")
        all_name = sa.func.count() == sa.func.count(sa.case((names, ZERO)))
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
        rows = sa.select(jobs.c.queue, jobs.c.state, sa.func.count()).where(jobs.c.priority > MAILS)
        return rows.group_by(jobs.c.queue, jobs.c.state)

    @functools.cached_property
    def cancel(self) -> Any:
        now, reason = self.database.now, sa.bindparam("reason", type_=sa.Text)
        actor = sa.bindparam("actor", type_=sa.Text)
        pending, first = jobs.c.state == PENDING, jobs.c.cancel_at.is_(None)
        return (
            sa.update(jobs)
            .where(jobs.c.id == sa.bindparam("job", type_=ID), sa.or_(pending, jobs.c.state == BUSY))
            .values(
                state=sa.case((pending, CANCELLED), else_=jobs.c.state),
                finished_at=sa.case((pending, now), else_=jobs.c.finished_at),
                error=sa.case((pending, sa.func.coalesce(reason, CANCELLED)), else_=jobs.c.error),
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
        own = sa.and_(jobs.c.id == sa.bindparam("job", type_=ID), jobs.c.state == BUSY)
        return sa.update(jobs).where(own).values(paused_at=value).returning(jobs.c.id)

    @functools.cached_property
    def retry(self) -> Any:
        live = sa.or_(jobs.c.state == PENDING, jobs.c.state == BUSY)
        cleared = ("finished_at", "result", "error", "cancel_at", "cancel_reason", "cancel_actor")
        return (
            sa.update(jobs)
            .where(jobs.c.id == sa.bindparam("job", type_=ID), ~live)
            .values(
                state=PENDING,
                run_at=self.database.now,
                tries=ZERO,
                crashes=ZERO,
                **dict.fromkeys(cleared, sa.null()),
            )
            .returning(jobs.c.queue)
        )

    @functools.cached_property
    def state(self) -> Any:
        return sa.select(jobs.c.state).where(jobs.c.id == sa.bindparam("job", type_=ID))


def _served_with(ahead: Any) -> sa.ColumnElement[bool]:
    # As one text, since PostgreSQL hashes a list of texts and walks through one of rows; no queue has a comma in its name.
    # A job whose queue nobody serves waits behind all others.
    pair = jobs.c.queue + sa.literal_column("','", sa.Text) + ahead.c.queue
    return sa.or_(
        ahead.c.queue == jobs.c.queue,
        pair.in_(sa.bindparam("pairs", expanding=True, type_=sa.Text)),
        jobs.c.queue.not_in(sa.bindparam("named", expanding=True, type_=sa.Text)),
    )
