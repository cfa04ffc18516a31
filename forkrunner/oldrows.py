"""Rows that are kept no longer: which jobs have ended too long ago, and that nothing of them is left.

Used by the files of the store only. No index is there for it, since it would cost every job: ids begin with the time at which they
were made, so what is old stands first in the primary key, and a job has not ended before it was made.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import sqlalchemy as sa

from . import clock
from .ids import first_after
from .internal import LOWEST
from .job import State
from .schema import ID, attempts, files, jobs, mails, outputs

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy.engine import Connection

    from .database import Database


class Batch(NamedTuple):
    """What one transaction has deleted."""

    jobs: int
    #: Where the next one goes on; None: there are no more.
    after: str | None


class OldRows:
    """The statements, built once for each kind of database."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def count(self, connection: Connection, keep: float, keep_failed: float, now: datetime | None) -> int:
        found = connection.execute(self._count, self._bounds(keep, keep_failed, now)).scalar()
        return int(found or 0)

    def delete(
        self,
        connection: Connection,
        keep: float,
        keep_failed: float,
        after: str,
        limit: int,
        now: datetime | None,
    ) -> Batch:
        bounds = self._bounds(keep, keep_failed, now) | {"after": after, "limit": limit}
        found = list(connection.execute(self._old, bounds).scalars())
        if not found:
            return Batch(0, None)
        for statement in self._deletes:
            connection.execute(statement, {"ids": found})
        return Batch(len(found), found[-1] if len(found) == limit else None)

    def _bounds(self, keep: float, keep_failed: float, now: datetime | None) -> dict[str, Any]:
        # by this host's clock: one that goes wrong makes it late or long, and the database's says what is old
        made = (clock.wall() if now is None else now.timestamp()) - min(keep, keep_failed)
        return {"keep": -keep, "keep_failed": -keep_failed, "made": first_after(max(made, 0.0)), "now": now}

    @functools.cached_property
    def _is_old(self) -> sa.ColumnElement[bool]:
        now = self.database.now
        until = self.database.later(now, sa.bindparam("keep", type_=sa.Double))
        until_failed = self.database.later(now, sa.bindparam("keep_failed", type_=sa.Double))
        well = jobs.c.state.in_([State.DONE.value, State.CANCELLED.value])
        return sa.and_(
            jobs.c.id < sa.bindparam("made", type_=ID),
            jobs.c.id.not_in(_told_of()),
            sa.or_(
                sa.and_(well, jobs.c.finished_at < until),
                sa.and_(jobs.c.state == State.FAILED.value, jobs.c.finished_at < until_failed),
            ),
        )

    @functools.cached_property
    def _count(self) -> Any:
        return sa.select(sa.func.count()).select_from(jobs).where(self._is_old)

    @functools.cached_property
    def _old(self) -> Any:
        # locked, so that none of them is made pending again before it is deleted; who has one is passed over
        rows = sa.select(jobs.c.id).where(self._is_old, jobs.c.id > sa.bindparam("after", type_=ID))
        rows = rows.order_by(jobs.c.id).limit(sa.bindparam("limit", type_=sa.Integer))
        return rows.with_for_update(skip_locked=True)

    @functools.cached_property
    def _deletes(self) -> list[Any]:
        ids = sa.bindparam("ids", expanding=True, type_=ID)
        own = [table.c.job_id for table in (attempts, outputs, files)]
        return [sa.delete(column.table).where(column.in_(ids)) for column in (*own, jobs.c.id)]


def _told_of() -> sa.CompoundSelect[tuple[str]]:
    """Select the jobs that a mail which is not sent yet tells of: it has to show them, their output and their files.

    Read once for a batch. It starts from the jobs of mails that wait, which an index has and which are few.
    """
    sender, digest = jobs.alias("sender"), mails.alias("digest")
    live = sa.or_(sender.c.state == State.PENDING.value, sender.c.state == State.BUSY.value)
    waiting = sa.and_(live, sender.c.priority == LOWEST)
    own = sa.join(sender, mails, mails.c.id == sender.c.id)
    # no index has `told_in`: the mails are read through only where a digest waits
    others = sa.join(sender, digest, sa.and_(digest.c.id == sender.c.id, digest.c.kind == "digest"))
    others = others.join(mails, mails.c.told_in == digest.c.id)
    return sa.union_all(
        *(
            sa.select(told).select_from(source).where(waiting)
            for source in (own, others)
            for told in (mails.c.job_id, mails.c.last_job_id)
        )
    )
