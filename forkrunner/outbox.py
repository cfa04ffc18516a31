"""Mails in the database: made with the ending that they tell of, folded, sealed, marked as sent.

Used by `store.py`, which gives the transaction that writes an ending, and through `Store.outbox` by whoever sends them.
What always holds:

1. A mail is made in the transaction that writes the ending, with the job that will send it: both or neither.
2. Of each fingerprint at most one mail is open; what fails alike is counted into it, and makes no other. One whose job
   is neither pending nor busy any more will not be sent by itself: it is closed, and what fails alike makes a new one.
3. A mail that is sealed tells of the same for ever, so that sending it again sends the same.
4. A mail of a fingerprint is due no sooner than its interval after the one before it was sealed.
5. In any hour at most `cap` mails are due; what is more is told of in one that is due when an hour has room for it. Of
   several supervisors each may see room for the last one.
6. While a mail waits, the jobs that it tells of first and last are not pruned: see `oldrows.py`.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from . import clock
from .batches import LIMITS, clean
from .database import Database
from .ids import new_id
from .internal import LOWEST, MAIL
from .job import State
from .records import Mail, Notice
from .schema import ID, Time, jobs, mails
from .transactions import Transactions

#: Id of a job and number of its attempt.
Key = tuple[str, int]

_COLUMNS = tuple(column.name for column in mails.columns)
_HOUR = timedelta(hours=1)
#: States of a mail's job in which it has not been sent and will not be by itself.
_GIVEN_UP = (State.FAILED.value, State.CANCELLED.value)
_CLEARED = ("finished_at", "error", "cancel_at", "cancel_reason", "cancel_actor")
#: What a digest of all that was over the cap has as its fingerprint, before its recipients.
_OVER = "over the cap"


@dataclass(frozen=True, slots=True)
class Standing:
    """How the mails stand, for people."""

    #: Made and not sent yet, or being tried again.
    waiting: int
    #: When the oldest of those was made.
    since: datetime | None
    #: Given up: their jobs have failed or were cancelled, and `again` sends them again.
    undeliverable: int
    #: Ids of the newest of those.
    ids: tuple[str, ...]
    #: Sent within the last hour.
    sent: int
    #: Why the last one that has not been sent could not be.
    error: str | None


class Outbox:
    """The mails of one database."""

    def __init__(self, database: Database, transactions: Transactions) -> None:
        self._database = database
        self._transactions = transactions

    # -- in the transaction of an ending

    def add(
        self, connection: Connection, notices: Iterable[tuple[Key, Notice]], now: datetime | None
    ) -> None:
        """Make the mails that endings ask for, or count these into the mails that are open: see the head, 1, 2, 4, 5."""
        first: dict[str, tuple[Key, Notice]] = {}
        last: dict[str, Key] = {}
        number: dict[str, int] = {}
        for key, notice in notices:
            first.setdefault(notice.fingerprint, (key, notice))
            last[notice.fingerprint] = key
            number[notice.fingerprint] = number.get(notice.fingerprint, 0) + 1
        # in one order, so that two supervisors do not wait for each other
        for fingerprint in sorted(first):
            key, notice = first[fingerprint]
            self._add(connection, notice, key, last[fingerprint], number[fingerprint], now)

    def _add(
        self, connection: Connection, notice: Notice, key: Key, last: Key, count: int, now: datetime | None
    ) -> None:
        if not self._open(connection, notice, notice.fingerprint, key, last, count, now):
            return
        # after the insert: whoever was sealing the mail before it has committed by now
        before, moment = connection.execute(
            self._last_sealed, {"fingerprint": notice.fingerprint, "id": notice.id, "now": now}
        ).one()
        due = moment if before is None else max(moment, before + timedelta(seconds=notice.interval))
        window = {"mail": notice.id, "hour": due - _HOUR}
        number = connection.execute(self._within_an_hour, window).scalar_one()
        if number < notice.cap:
            self._send_at(connection, notice, key, due, now)
            return
        # over the cap: it is told of with all others of these recipients, when the hour has room for one more
        recipients = json.dumps(notice.recipients or [])
        digest = _digest_of(notice, recipients)
        if self._open(connection, digest, digest.fingerprint, key, last, 0, now):
            # when so many of them are more than an hour old that there is room for one
            window = {"mail": digest.id, "hour": due - _HOUR}
            leaves = connection.execute(self._due_at, window | {"skip": number - notice.cap}).scalar_one()
            self._send_at(connection, digest, key, max(due, leaves + _HOUR), now)
        values = {"mail": notice.id, "over": digest.fingerprint}
        connection.execute(self._tell_in, values)

    def _open(
        self,
        connection: Connection,
        notice: Notice,
        fingerprint: str,
        key: Key,
        last: Key,
        count: int,
        now: datetime | None,
    ) -> bool:
        """Count into the open mail of a fingerprint; True: there was none, and now there is."""
        values = {
            "id": notice.id,
            "kind": notice.kind,
            "fingerprint": fingerprint,
            "task": clean(notice.task),
            "reason": clean(notice.reason, LIMITS["error"]),
            "recipients": json.dumps(notice.recipients or []),
            "job_id": key[0],
            "attempt": key[1],
            "last_job_id": last[0],
            "last_attempt": last[1],
            "count": count,
            "now": now,
        }
        dead = {"alike": fingerprint, "interval": -notice.interval, "now": now}
        connection.execute(self._close, dead)
        found: str = connection.execute(self._insert, values).scalar_one()
        return found == notice.id

    def _send_at(
        self, connection: Connection, notice: Notice, key: Key, due: datetime, now: datetime | None
    ) -> None:
        connection.execute(self._set_due, {"mail": notice.id, "due": due})
        facts = {"kind": notice.kind, "task": notice.task, "job": key[0], "attempt": key[1]}
        values = {
            "id": notice.id,
            "arguments": clean(json.dumps(facts, ensure_ascii=False)),
            "options": notice.options,
            "due": due,
            "now": now,
        }
        connection.execute(self._enqueue, values)

    # -- sending

    def seal(self, id: str, *, now: datetime | None = None) -> list[Mail]:
        """Seal a mail and return it, then those that are told of in it; nothing if there is no such mail.

        What fails alike from now on is the matter of another mail. Sealing again changes nothing. Each statement stands
        by itself: a sender that is stopped in between holds no lock.
        """
        moment = self._moment(now)

        def work(connection: Connection) -> list[Mail]:
            connection.execute(self._seal, {"mail": id, "now": moment})
            rows = connection.execute(self._told, {"mail": id}).all()
            return [Mail(*row) for row in rows]

        return sorted(self._transactions.run(work, bare=True, repeat=True), key=lambda mail: mail.id != id)

    def delivered(
        self, id: str, recipients: Sequence[str], *, all: bool, now: datetime | None = None
    ) -> None:
        """Write down for whom a server has taken a mail; `all`: nobody is left."""
        values = {"mail": id, "taken": json.dumps(list(recipients)), "all": all, "now": self._moment(now)}
        self._transactions.run(
            lambda connection: connection.execute(self._delivered, values), bare=True, repeat=True
        )

    def forget(self, before: timedelta, *, now: datetime | None = None) -> int:
        """Delete the mails that were sealed longer ago, some thousands at most; return how many."""
        values = {"before": (now or clock.utc()) - before}
        return self._transactions.run(lambda connection: len(connection.execute(self._forget, values).all()))

    # -- questions and wishes of people

    def standing(self, *, now: datetime | None = None) -> Standing:
        """Say how the mails stand."""

        def work(connection: Connection) -> Standing:
            rows = connection.execute(self._by_state).all()
            by_state = {state: (number, since) for state, number, since in rows}
            waiting = [by_state[state] for state in (State.PENDING, State.BUSY) if state in by_state]
            failed = connection.execute(self._undeliverable).all()
            sent = connection.execute(self._sent, {"hour": (now or clock.utc()) - _HOUR}).scalar_one()
            return Standing(
                sum(number for number, _ in waiting),
                min((since for _, since in waiting), default=None),
                sum(by_state[state][0] for state in _GIVEN_UP if state in by_state),
                tuple(id for id, _ in failed),
                sent,
                connection.execute(self._why).scalar(),
            )

        return self._transactions.read(work)

    def again(self, *, now: datetime | None = None) -> list[str]:
        """Send again what was undeliverable; return the ids of those mails."""
        values = {"now": self._moment(now)}
        return self._transactions.run(
            lambda connection: list(connection.execute(self._again, values).scalars())
        )

    def _moment(self, now: datetime | None) -> datetime | None:
        return clock.utc() if now is None and self._database.host_clock else now

    # -- the statements

    @functools.cached_property
    def _close(self) -> Any:
        # as if it had been sealed an interval ago: nobody got it, so that the next one has not to wait for it
        interval = sa.bindparam("interval", type_=sa.Double)
        return (
            sa.update(mails)
            .where(
                mails.c.fingerprint == sa.bindparam("alike", type_=sa.Text),
                mails.c.sealed_at.is_(None),
                ~_on_its_way(),
            )
            .values(sealed_at=self._database.later(self._database.now, interval))
        )

    @functools.cached_property
    def _insert(self) -> Any:
        now, database = self._database.now, self._database
        values: dict[str, Any] = {
            name: sa.bindparam(name, type_=mails.c[name].type)
            for name in _COLUMNS
            if name not in ("created_at", "last_at", "due_at", "told_in", "sealed_at", "sent_at", "delivered")
        }
        values |= {"created_at": now, "last_at": now, "due_at": now}
        insert = database.insert(mails).values(values)
        fresh = insert.excluded
        return insert.on_conflict_do_update(
            index_elements=[mails.c.fingerprint],
            index_where=mails.c.sealed_at.is_(None),
            set_={
                "count": mails.c.count + fresh.count,
                "last_job_id": fresh.last_job_id,
                "last_attempt": fresh.last_attempt,
                "last_at": fresh.last_at,
            },
        ).returning(mails.c.id)

    @functools.cached_property
    def _last_sealed(self) -> Any:
        own = sa.and_(
            mails.c.fingerprint == sa.bindparam("fingerprint", type_=sa.Text),
            mails.c.id != sa.bindparam("id", type_=ID),
        )
        last = sa.select(sa.func.max(mails.c.sealed_at)).where(own).scalar_subquery()
        return sa.select(last, self._database.now)

    @functools.cached_property
    def _within_an_hour(self) -> Any:
        return sa.select(sa.func.count()).select_from(mails).where(*_counted())

    @functools.cached_property
    def _due_at(self) -> Any:
        rows = sa.select(mails.c.due_at).where(*_counted()).order_by(mails.c.due_at)
        return rows.offset(sa.bindparam("skip", type_=sa.Integer)).limit(1)

    @functools.cached_property
    def _set_due(self) -> Any:
        return _one().values(due_at=sa.bindparam("due", type_=Time))

    @functools.cached_property
    def _tell_in(self) -> Any:
        digest = mails.alias("digest")
        found = sa.select(digest.c.id).where(
            digest.c.fingerprint == sa.bindparam("over", type_=sa.Text), digest.c.sealed_at.is_(None)
        )
        return _one().values(told_in=found.scalar_subquery())

    @functools.cached_property
    def _enqueue(self) -> Any:
        values = {
            "id": sa.bindparam("id", type_=ID),
            "task": MAIL,
            "queue": MAIL,
            "state": str(State.PENDING),
            "priority": LOWEST,
            "run_at": sa.bindparam("due", type_=Time),
            "created_at": self._database.now,
            "arguments": sa.bindparam("arguments", type_=sa.Text),
            "options": sa.bindparam("options", type_=sa.Text),
            "attempt": 0,
            "tries": 0,
            "crashes": 0,
        }
        return self._database.insert(jobs).values(values).on_conflict_do_nothing()

    @functools.cached_property
    def _seal(self) -> Any:
        own = sa.bindparam("mail", type_=ID)
        return (
            sa.update(mails)
            .where(sa.or_(mails.c.id == own, mails.c.told_in == own), mails.c.sealed_at.is_(None))
            .values(sealed_at=self._database.now)
        )

    @functools.cached_property
    def _told(self) -> Any:
        own = sa.bindparam("mail", type_=ID)
        return sa.select(*mails.c).where(sa.or_(mails.c.id == own, mails.c.told_in == own)).limit(1000)

    @functools.cached_property
    def _delivered(self) -> Any:
        sent = sa.case((sa.bindparam("all", type_=sa.Boolean), self._database.now), else_=mails.c.sent_at)
        return _one().values(delivered=sa.bindparam("taken", type_=sa.Text), sent_at=sent)

    @functools.cached_property
    def _forget(self) -> Any:
        before = sa.bindparam("before", type_=Time)
        # nothing has failed alike since, which would have closed it
        dead = sa.and_(mails.c.sealed_at.is_(None), mails.c.last_at < before, ~_on_its_way())
        old = sa.select(mails.c.id).where(sa.or_(mails.c.sealed_at < before, dead)).limit(5000)
        return sa.delete(mails).where(mails.c.id.in_(old)).returning(mails.c.id)

    @functools.cached_property
    def _by_state(self) -> Any:
        rows = sa.select(jobs.c.state, sa.func.count(), sa.func.min(mails.c.created_at))
        return rows.join_from(mails, jobs, jobs.c.id == mails.c.id).where(*_unsent()).group_by(jobs.c.state)

    @functools.cached_property
    def _undeliverable(self) -> Any:
        rows = sa.select(mails.c.id, jobs.c.error).join_from(mails, jobs, jobs.c.id == mails.c.id)
        return rows.where(*_unsent(), jobs.c.state.in_(_GIVEN_UP)).order_by(mails.c.id.desc()).limit(20)

    @functools.cached_property
    def _why(self) -> Any:
        rows = sa.select(jobs.c.error).join_from(mails, jobs, jobs.c.id == mails.c.id)
        return rows.where(*_unsent(), jobs.c.error.is_not(None)).order_by(jobs.c.started_at.desc()).limit(1)

    @functools.cached_property
    def _sent(self) -> Any:
        return sa.select(sa.func.count()).where(mails.c.sent_at > sa.bindparam("hour", type_=Time))

    @functools.cached_property
    def _again(self) -> Any:
        lost = sa.select(mails.c.id).where(*_unsent())
        return (
            sa.update(jobs)
            .where(jobs.c.id.in_(lost), jobs.c.state.in_(_GIVEN_UP), jobs.c.priority == LOWEST)
            .values(
                state=str(State.PENDING),
                run_at=self._database.now,
                tries=0,
                crashes=0,
                **dict.fromkeys(_CLEARED, sa.null()),
            )
            .returning(jobs.c.id)
        )


def _one() -> Any:
    return sa.update(mails).where(mails.c.id == sa.bindparam("mail", type_=ID))


def _counted() -> tuple[sa.ColumnElement[bool], ...]:
    """Say which mails take room in an hour, but one."""
    return (
        mails.c.due_at > sa.bindparam("hour", type_=Time),
        mails.c.told_in.is_(None),
        mails.c.id != sa.bindparam("mail", type_=ID),
    )


def _on_its_way() -> sa.ColumnElement[bool]:
    """Say whether the job that sends a mail, or the one in which it is told of, is pending or busy."""
    sender = jobs.alias("sender")
    return sa.exists().where(
        sender.c.id == sa.func.coalesce(mails.c.told_in, mails.c.id),
        sender.c.state.in_([State.PENDING.value, State.BUSY.value]),
    )


def _unsent() -> tuple[sa.ColumnElement[bool], ...]:
    return mails.c.sent_at.is_(None), mails.c.told_in.is_(None)


def _digest_of(notice: Notice, recipients: str) -> Notice:
    return replace(
        notice,
        id=new_id(),
        kind="digest",
        fingerprint=f"{_OVER} {recipients}",
        task="",
        reason="more kinds of failures than mails in an hour",
    )
