"""What supervisors do with the tables: claim rows, end them, hold their lease, rescue what the dead have left.

Called from one thread, with a connection of its own; what always holds is said at the head of store.py.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from .access import Access
from .batches import LARGE, clean, ending_row, first_of, is_large, pack, without_details
from .errors import SchemaError, StoreError, StoreUnavailable
from .job import State
from .records import Claim, Ending, Key, SupervisorRow, Wish
from .schema import supervisors
from .supervisorsql import CLAIM, SUPERVISOR


class Supervising(Access):
    """The supervisors' side of the store."""

    # -- the way of a job

    def claim(
        self, supervisor: str, limit: int, queues: Sequence[str] | None, *, now: datetime | None = None
    ) -> list[Claim]:
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
    ) -> list[Claim]:
        if limit <= 0:
            return []
        parameters = {"supervisor": supervisor, "limit": limit, "now": self._moment(now)}
        statement = self._supervisor_sql.claim
        if queues is not None:
            statement = self._supervisor_sql.claim_of_queues
            parameters["queues"] = list(queues)
        return _claims(connection.execute(statement, parameters).all(), limit)

    def batch(self, endings: Iterable[Ending]) -> list[Ending]:
        """Return as many of the first endings as one call of `finish` or `turn` writes well within its time."""
        return first_of(endings)

    def finish(self, endings: Sequence[Ending], *, now: datetime | None = None) -> dict[Key, State]:
        """Write how attempts ended, and what becomes of their rows; return those that it was that ended, with their state.

        That is the ending's own, or `cancelled`: see `after`. One transaction. A row that is not busy any more under the
        ending's id, attempt and supervisor is left as it is and its attempt is not written down: a late or double report
        changes nothing. Text is cleaned and cut to what a database takes; an ending that is refused all the same is
        written without its details, and then the endings go in several transactions.
        """
        if not endings:
            return {}
        try:
            return self._transactions.run(lambda connection: self._finish(connection, endings, now))
        except (StoreUnavailable, SchemaError):
            raise
        except StoreError as error:
            return self._finish_singly(endings, now, error)

    def _finish(
        self, connection: Connection, endings: Sequence[Ending], now: datetime | None
    ) -> dict[Key, State]:
        rows = [ending_row(ending) for ending in endings]
        # one by one: taking 50 MB out of JSON costs seconds, on SQLite once more for each column
        large = [row for row in rows if len(row.get("result", "")) > LARGE]
        results = [
            {"job": row["job_id"], "number": row["attempt"], "text": row.pop("result")} for row in large
        ]
        parameters = {"batch": pack(rows), "now": self._moment(now)}
        if self._database.writes_in_with:
            found = connection.execute(self._supervisor_sql.end_and_note, parameters)
        else:
            connection.execute(self._supervisor_sql.note, parameters)
            found = connection.execute(self._supervisor_sql.end, parameters)
        ended = {(row[0], row[1]): State(row[2]) for row in found}
        for result in results:
            if (result["job"], result["number"]) in ended:
                connection.execute(self._supervisor_sql.result, result)
        if written := [
            {"job": e.attempt.job_id, "number": e.attempt.attempt, "text": clean(e.output)}
            for e in endings
            if e.output is not None and e.key in ended
        ]:
            connection.execute(self._supervisor_sql.output, written)
        if files := [file for e in endings if e.files and e.key in ended for file in e.files]:
            self._files.insert(connection, files)
        # nobody is mailed of a failure of what was cancelled
        if notices := [(e.key, e.notice) for e in endings if e.notice and ended.get(e.key) == e.next.state]:
            self.outbox.add(connection, notices, self._moment(now))
        return ended

    def _finish_singly(
        self, endings: Sequence[Ending], now: datetime | None, error: StoreError
    ) -> dict[Key, State]:
        # by halves: one bad ending among 500 costs some 18 transactions, not 500
        if len(endings) == 1:
            plain = without_details(endings[0], error)
            try:
                return self._transactions.run(lambda connection: self._finish(connection, [plain], now))
            except StoreUnavailable:
                raise
            except StoreError:
                # that it has ended is worth more than a mail about it
                bare = replace(plain, notice=None)
                return self._transactions.run(lambda connection: self._finish(connection, [bare], now))
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
    ) -> tuple[dict[Key, State], list[Claim]]:
        """Do `finish` and `claim` in one transaction: what a supervisor under load does all the time.

        In one statement where that can be: four round trips less. On a busy machine each of them costs a
        millisecond, because supervisor and server wait for the jobs to leave them a processor.
        """
        can = bool(endings) and limit > 0 and self._database.writes_in_with
        alone = can and not any(map(is_large, endings))

        def work(connection: Connection) -> tuple[dict[Key, State], list[Claim]]:
            if alone and self._database.is_ours(connection):
                return self._finish_and_claim(connection, endings, supervisor, limit, queues, now)
            ended = self._finish(connection, endings, now) if endings else {}
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
    ) -> tuple[dict[Key, State], list[Claim]]:
        parameters = {
            "batch": pack([ending_row(ending) for ending in endings]),
            "supervisor": supervisor,
            "limit": limit,
            "now": self._moment(now),
        }
        statement = self._supervisor_sql.turn
        if queues is not None:
            statement = self._supervisor_sql.turn_of_queues
            parameters["queues"] = list(queues)
        found = connection.execute(statement, parameters).all()
        ended = {(row.id, row.attempt): State(row.became) for row in found if row.became}
        return ended, _claims([row for row in found if not row.became], limit)

    def claim_mail(self, supervisor: str, *, now: datetime | None = None) -> tuple[list[Claim], float | None]:
        """Mark the mail that is due first busy and return it; beside it, in how many seconds the next one is due.

        As `claim`, which leaves mails alone.
        """
        parameters = {"supervisor": supervisor, "limit": 1, "now": self._moment(now)}

        def work(connection: Connection) -> tuple[list[Claim], float | None]:
            claims = _claims(connection.execute(self._supervisor_sql.claim_mails, parameters).all(), 1)
            due, moment = connection.execute(self._supervisor_sql.mail_due, {"now": parameters["now"]}).one()
            return claims, None if due is None else max(0.0, (due - moment).total_seconds())

        return self._transactions.run(work)

    def next_due(self, queues: Sequence[str] | None, *, now: datetime | None = None) -> float | None:
        """Return in how many seconds the earliest pending row is due, at least 0; None if none is pending."""
        parameters: dict[str, Any] = {"now": self._moment(now)}
        statement = self._supervisor_sql.due
        if queues is not None:
            statement = self._supervisor_sql.due_of_queues
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

        def work(connection: Connection) -> int:
            count = len(connection.execute(self._supervisor_sql.release, parameters).all())
            # others may have found nothing while we had it
            self._wake(connection)
            return count

        return self._transactions.run(work)

    def busy(self, supervisor: str) -> set[Key]:
        """Return id and attempt of the rows that are busy under a supervisor."""
        parameters = {"supervisor": supervisor}
        rows = self._transactions.read(
            lambda connection: connection.execute(self._supervisor_sql.busy, parameters).all()
        )
        return {(row[0], row[1]) for row in rows}

    def wishes(self, supervisor: str) -> list[Wish]:
        """Return what is wanted of a supervisor's busy rows: those to be cancelled, and those that are paused."""
        parameters = {"supervisor": supervisor}
        rows = self._transactions.read(
            lambda connection: connection.execute(self._supervisor_sql.wishes, parameters).all()
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
            lambda connection: connection.execute(
                self._supervisor_sql.register, parameters | self._lease(lease)
            )
        )

    def renew(self, supervisor: str, lease: float, molds: str | None = None) -> bool:
        """Let the lease end that many seconds from now; False: the row is gone, somebody holds us for dead.

        `molds` replaces what the row says of them.
        """
        parameters = {"supervisor": supervisor, "molds": molds} | self._lease(lease)
        return self._transactions.run(
            lambda connection: connection.execute(self._supervisor_sql.renew, parameters).rowcount > 0
        )

    def _lease(self, lease: float) -> dict[str, Any]:
        return {"lease": lease, "now": self._moment(None)}

    def deregister(self, supervisor: str) -> None:
        """Delete a supervisor's row; what is still busy under it may then be rescued by anybody."""
        parameters = {"supervisor": supervisor}
        self._transactions.run(
            lambda connection: connection.execute(self._supervisor_sql.deregister, parameters)
        )

    def supervisors(self) -> list[SupervisorRow]:
        """Return all supervisors that have a row, the oldest first."""
        columns = [supervisors.c[name] for name in (*SUPERVISOR, "started_at", "lease_until")]
        statement = sa.select(*columns).order_by(supervisors.c.started_at, supervisors.c.id)
        return [
            SupervisorRow(*row)
            for row in self._transactions.read(lambda connection: connection.execute(statement).all())
        ]

    def expire(self, proven_dead: Collection[str], *, now: datetime | None = None) -> list[str]:
        """Delete the rows of supervisors whose lease is over or that are proven dead; return their ids.

        What was busy under them is then in `orphans`, for whoever asks first, also after we crash in between.
        """
        parameters = {"dead": list(proven_dead), "now": self._moment(now)}
        return self._transactions.run(
            lambda connection: list(connection.execute(self._supervisor_sql.expire, parameters).scalars())
        )

    def orphans(self, limit: int) -> list[Claim]:
        """Return busy rows whose supervisor has no row any more, to be finished as `lost`.

        `supervisor` in each is the dead one, which their ending has to name. Several may rescue at once: the
        fence lets one of them end a row.
        """
        rows = self._transactions.read(
            lambda connection: connection.execute(self._supervisor_sql.orphans, {"limit": limit}).all()
        )
        return [Claim(*row) for row in rows]


def _claims(rows: Sequence[sa.Row[Any]], limit: int) -> list[Claim]:
    assert len(rows) <= limit, f"claimed {len(rows)} rows for {limit}"
    # RETURNING has no order: here it is that of the index
    width = len(CLAIM)
    ordered = sorted(rows, key=lambda row: (-row.priority, row.run_at, row.id))
    return [Claim(*row[:width]) for row in ordered]
