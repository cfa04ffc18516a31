"""PostgreSQL, by psycopg: nothing belongs to the session, so that everything works through PgBouncer in transaction mode.

Timeouts are set by SET LOCAL, and statements are prepared only on a connection that is proven to have its backend for
itself. What bounds a call of a supervisor to a server that is silent (each one alone misses a case):

    connect_timeout          nobody accepts
    tcp_user_timeout         packets are dropped while we send
    keepalives               packets are dropped while we wait
    statement_timeout        the server works, too long
    lock_timeout             somebody else's lock
    the alarm                the server, or a proxy, is stopped, but its kernel acknowledges
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterable
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import URL, Connection

from .database import Database, Silent, alarm, schema_error
from .errors import StoreError, StoreUnavailable
from .schema import Time


class PostgreSQL(Database):
    name = "postgresql"
    writes_in_with = True
    makes_itself = False
    host_clock = False

    def __init__(self, url: URL, role: str, timeout: float) -> None:
        super().__init__(url.set(drivername="postgresql+psycopg"), role, timeout)
        # SET LOCAL in the one round trip that begins: settings of the session do not get through PgBouncer. The
        # server gives up before we do, so that an error is the usual way and the alarm the last one.
        server = round(timeout * 900)
        self.settings = {
            "statement_timeout": server,
            "lock_timeout": server // 2,
            "idle_in_transaction_session_timeout": server * 2,
            # After a burst the statistics still speak of the empty queue: 10,000 rows were then sorted for a claim of
            # 16 in 23 ms, instead of 16 read in the order of the index in 0.3 ms.
            "enable_sort": "off",
            "enable_bitmapscan": "off",
        }
        local = (f"SET LOCAL {name} = {value}" for name, value in self.settings.items())
        self.begin = "; ".join(["BEGIN ISOLATION LEVEL READ COMMITTED", *local])

    def connect_args(self) -> dict[str, Any]:
        ours = {
            "connect_timeout": 2,
            # packets dropped while we send: the first; while we wait: the others
            "tcp_user_timeout": 1500,
            "keepalives": 1,
            "keepalives_idle": 1,
            "keepalives_interval": 1,
            "keepalives_count": 2,
            "application_name": f"forkrunner {self.role}",
        }
        args: dict[str, Any] = {name: value for name, value in ours.items() if name not in self.url.query}
        # a statement prepared in one session of PgBouncer is missing in the next
        return args | {"autocommit": True, "prepare_threshold": None}

    def connected(self, connection: Any) -> None:
        from psycopg.types.string import TextLoader

        # a UUID is text to us; making an object of each costs more than reading the rest of its row
        connection.adapters.register_loader("uuid", TextLoader)
        # A pooler makes up the process id that it tells a client, for its backends change with each transaction. With
        # the true one the backend is ours alone, may keep statements prepared, and settings for those that stand by
        # themselves.
        if self.role == "supervisor":
            backend = connection.execute("SELECT pg_backend_pid()").fetchone()[0]
            if backend == connection.info.backend_pid:
                # few statements, each of them many times: else the first dozen turns are planned anew, 4 to 9 ms each
                connection.prepare_threshold = 1
                names = self.settings | {
                    "default_transaction_isolation": "'read committed'",
                    "plan_cache_mode": "force_generic_plan",
                }
                connection.execute("; ".join(f"SET {name} = {value}" for name, value in names.items()))

    def is_ours(self, connection: Connection) -> bool:
        raw: Any = connection.connection.dbapi_connection
        return raw.prepare_threshold is not None

    def abandon(self) -> None:
        # the parent's session ends with the parent, not with the last copy of its socket
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for connection, _ in self.opened:
            with contextlib.suppress(OSError, Exception):
                os.dup2(null, connection.fileno(), inheritable=False)
        os.close(null)
        super().abandon()

    def deadline(self) -> contextlib.AbstractContextManager[object]:
        return alarm(self.timeout) if self.role == "supervisor" else contextlib.nullcontext()

    def error_of(self, error: BaseException) -> StoreError:
        if isinstance(error, Silent):
            return StoreUnavailable(f"{self}: no answer within {self.timeout:g} s")
        original = getattr(error, "orig", error)
        lines = str(original).strip().splitlines()
        text = f"{self}: {lines[0] if lines else type(original).__name__}"
        state = getattr(original, "sqlstate", None)
        if state in ("42P01", "42703", "3F000"):  # no such table, column, schema
            return schema_error(lines[0])
        if getattr(error, "connection_invalidated", False):
            return StoreUnavailable(text)
        if state is None:
            # psycopg gives none to what happens before the server speaks
            lost = type(original).__name__ == "OperationalError"
            return StoreUnavailable(text) if lost else StoreError(text)
        # connection, transaction rolled back, resources, lock not available, operator, system; read-only: a standby
        if state[:2] in ("08", "40", "53", "57", "58") or state in ("55P03", "25P03", "25P04", "25006"):
            return StoreUnavailable(text, sqlstate=state)
        return StoreError(text, sqlstate=state)

    def insert(self, table: sa.Table) -> Any:
        return postgresql.insert(table)

    def unpack(self, columns: Iterable[sa.Column[Any]]) -> sa.CTE:
        text = sa.cast(sa.bindparam("batch", type_=sa.Text), sa.JSON)
        rows = (
            sa.func.json_to_recordset(text)
            .table_valued(*(sa.column(c.name, c.type) for c in columns))
            .render_derived(name="rows", with_types=True)
        )
        return sa.select(rows).cte("batch").prefix_with("MATERIALIZED")

    @functools.cached_property
    def now(self) -> sa.ColumnElement[datetime]:
        # the moment at which the statement arrived. clock_timestamp() is another one in each row, so that no index
        # could be searched by it; now() is the BEGIN's.
        given = sa.cast(sa.bindparam("now", type_=Time), Time)
        return sa.func.coalesce(given, sa.func.statement_timestamp(), type_=Time)

    def later(self, moment: sa.ColumnElement[Any], seconds: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
        return sa.type_coerce(moment + seconds * sa.literal_column("interval '1 second'", sa.Interval), Time)
