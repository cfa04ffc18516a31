"""One database, as a store reaches it: its URL, its transactions, its tables, its clock.

The base of both sides of the store; nothing here touches a row.
"""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.engine import Connection, make_url

from . import clock, revision
from .clientsql import ClientStatements
from .database import Database
from .errors import StoreError
from .filerows import FileRows
from .oldrows import OldRows
from .outbox import Outbox
from .postgresql import PostgreSQL
from .sqlite import SQLite
from .statements import CHANNEL
from .supervisorsql import SupervisorStatements
from .transactions import Transactions


class Access:
    """The way to the tables of one database, in a role: "client" or "supervisor"; see `Store`."""

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
        self._client_sql = ClientStatements(self._database)
        self._supervisor_sql = SupervisorStatements(self._database)
        self._files = FileRows(self._database)
        self._old = OldRows(self._database)
        self._transactions = Transactions(self._database, role)
        #: The mails.
        self.outbox = Outbox(self._database, self._transactions)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._database} {self.role}>"

    def _wake(self, connection: Connection, payload: str = "") -> None:
        """Tell supervisors that listen; on SQLite they see that the file was written to."""
        if self.notify and not self._database.makes_itself:
            connection.execute(sa.select(sa.func.pg_notify(CHANNEL, payload)))

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

    def close(self) -> None:
        """Close every connection; the next call opens one again."""
        self._transactions.close()

    def forget(self) -> None:
        """Drop every connection without touching it: see `Transactions.forget`."""
        self._transactions.forget()

    def _moment(self, now: datetime | None) -> datetime | None:
        """Return what a statement takes for now; None: the database asks its own clock."""
        return clock.utc() if now is None and self._database.host_clock else now
