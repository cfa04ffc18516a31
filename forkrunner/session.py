"""A task's own work on the database of the jobs: one SQLAlchemy Session, which ends as its attempt does.

Made when the task asks for it, in its own process: no connection has passed a fork. Committed when the task has returned
and its result has a form in JSON; else dropped, and the database rolls back, as it does when the process is killed. In
a replay nothing of it stays: on PostgreSQL the task's own commits are savepoints of a transaction that is rolled back, on
SQLite, where such a transaction would keep everybody else from writing, it works on a copy of the file.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.orm import Session as Session
from sqlalchemy.pool import NullPool

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Seconds that an SQLite session waits for the lock of the file.
_PATIENCE = 10


class Work:
    """The session of one attempt."""

    def __init__(self, url: str, job_id: str, copy_to: str | None = None) -> None:
        """Prepare; `copy_to`: it is a replay, nothing is to stay, and there a copy of an SQLite file may lie."""
        self._url = _normal(url)
        self._job_id = job_id
        self._copy_to = copy_to
        self._pid = os.getpid()
        self._session: Session | None = None
        self._connection: Connection | None = None

    def session(self) -> Session:
        """Return the session; the first call connects.

        Raises:
            RuntimeError: in another process than the job's own, whose connection it must not share.
        """
        if self._pid != os.getpid():
            raise RuntimeError(
                "session(): this is not the job's own process but one that it has forked; make an engine of its own here"
            )
        if self._session is None:
            if self._copy_to is not None and self._url.get_backend_name() == "sqlite":
                self._url = _copy_of(self._url, self._copy_to)
            engine = sa.create_engine(self._url, poolclass=NullPool, connect_args=self._connect_args())
            self._connection = engine.connect()
            mode: Any = "rollback_only"
            if self._rolls_back:
                self._connection.begin()
                mode = "create_savepoint"
            self._session = Session(self._connection, join_transaction_mode=mode)
        return self._session

    @property
    def _rolls_back(self) -> bool:
        return self._copy_to is not None and self._url.get_backend_name() == "postgresql"

    def _connect_args(self) -> Mapping[str, Any]:
        if self._url.get_backend_name() == "sqlite":
            return {"timeout": _PATIENCE}
        # a statement prepared in one session of PgBouncer is missing in the next
        return {"application_name": f"forkrunner job {self._job_id}", "prepare_threshold": None}

    def commit(self) -> None:
        """Commit, if this is the job's own process; in a replay see only that it could be."""
        if self._session is None or self._connection is None or self._pid != os.getpid():
            return
        self._session.commit()
        if self._rolls_back:
            # as a commit would have: what is checked only there
            self._connection.exec_driver_sql("SET CONSTRAINTS ALL IMMEDIATE")
        self.drop()

    def drop(self) -> None:
        """Close the connection as it is, which rolls back what is not committed. Asks the database nothing; never fails."""
        if self._session is None or self._connection is None or self._pid != os.getpid():
            return
        with contextlib.suppress(Exception):
            self._connection.invalidate()
        with contextlib.suppress(Exception):
            self._session.close()
        self._session = self._connection = None


def _normal(url: str) -> URL:
    parsed = make_url(
        url.replace("postgres://", "postgresql://", 1) if url.startswith("postgres://") else url
    )
    postgresql = parsed.get_backend_name() == "postgresql"
    return parsed.set(drivername="postgresql+psycopg") if postgresql else parsed


def _copy_of(url: URL, folder: str) -> URL:
    """Copy an SQLite file as it is at this moment, while others use it; return the URL of the copy."""
    import sqlite3

    path = os.path.join(folder, "database-copy.db")
    with (
        contextlib.closing(
            sqlite3.connect(f"file:{url.database}?mode=ro", uri=True, timeout=_PATIENCE)
        ) as source,
        contextlib.closing(sqlite3.connect(path)) as target,
    ):
        source.backup(target)
    return url.set(database=path)
