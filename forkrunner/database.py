"""What differs between the databases: how to connect and begin, how a batch is unpacked, what an error means.

Used by the files that the store is made of; the statements are otherwise the same on both. The drivers are in autocommit; the "begin"
event of SQLAlchemy sends what begins a transaction, in one round trip, except on a connection with the option BARE, on
which each statement stands by itself.

On PostgreSQL nothing belongs to the session, so that everything works through PgBouncer in transaction mode: timeouts
by SET LOCAL, and prepared statements only on a connection that is proven to have its backend for itself.

What bounds a call of a supervisor to a PostgreSQL that is silent (each one alone misses a case):

    connect_timeout          nobody accepts
    tcp_user_timeout         packets are dropped while we send
    keepalives               packets are dropped while we wait
    statement_timeout        the server works, too long
    lock_timeout             somebody else's lock
    the alarm                the server, or a proxy, is stopped, but its kernel acknowledges

SQLite cannot be interrupted in its wait for a lock, so a supervisor waits 50 ms for it and comes again.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import signal
import sys
import threading
from collections.abc import Iterable
from datetime import datetime
from typing import Any, ClassVar

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, Connection, Engine

from . import clock
from .errors import SchemaError, StoreError, StoreUnavailable
from .schema import Time

#: Execution options of a connection whose statements each stand by themselves.
BARE = {"forkrunner_bare": True}
#: Seconds that a call waits for the lock of an SQLite file; a supervisor has other things to do meanwhile.
PATIENCE = {"client": 10.0, "supervisor": 0.05}


class Silent(BaseException):
    """The database did not answer in time.

    Not an Exception: only then does SQLAlchemy give the connection up, which has a command in flight.
    """


class Database:
    """One kind of database: how to connect and begin, how a batch is unpacked, what an error means."""

    name: ClassVar[str]
    #: An INSERT may stand in a WITH beside the UPDATE whose rows it takes.
    writes_in_with: ClassVar[bool]
    #: The tables are made at the first use, by whoever comes first.
    makes_itself: ClassVar[bool]
    #: What `now` is where the caller gives none; None: the database says it itself.
    host_clock: ClassVar[bool]

    def __init__(self, url: URL, role: str, timeout: float) -> None:
        self.url = url
        self.role = role
        self.timeout = timeout
        #: Connections of the driver that are open, each with the pool's record of it.
        self.opened: list[tuple[Any, Any]] = []

    def __str__(self) -> str:
        return self.url.render_as_string(hide_password=True)

    def engine(self) -> Engine:
        """Make an engine; it connects when it is used."""
        engine = sa.create_engine(
            self.url,
            connect_args=self.connect_args(),
            # a client may have many threads, and each gets its turn; a supervisor has one
            pool_size=1 if self.role == "supervisor" else 4,
            max_overflow=0 if self.role == "supervisor" else 28,
            pool_timeout=self.timeout,
        )
        # not the attribute, which is the next engine's when this one closes
        opened = self.opened = []

        @event.listens_for(engine, "connect")
        def connected(connection: Any, record: Any) -> None:
            opened.append((connection, record))
            self.connected(connection)

        @event.listens_for(engine, "close")
        def closed(connection: Any, record: Any) -> None:
            opened[:] = [pair for pair in opened if pair[0] is not connection]

        begin = self.begin

        @event.listens_for(engine, "begin")
        def started(connection: Connection) -> None:
            # the drivers are in autocommit: nothing but this begins a transaction
            if not connection.get_execution_options().get("forkrunner_bare"):
                connection.exec_driver_sql(begin)

        return engine

    #: What begins a transaction, in one round trip.
    begin: str

    def connect_args(self) -> dict[str, Any]:
        raise NotImplementedError

    def connected(self, connection: Any) -> None:
        """Prepare a new connection of the driver."""

    def is_ours(self, connection: Connection) -> bool:
        """Say whether one statement that stands by itself is a whole transaction, with all our settings."""
        return False

    def check(self) -> None:
        """Look whether the database is still the one that was opened."""

    def close(self) -> None:
        """Close what an engine that was disposed of has left open: an alarm came before it was back in the pool."""
        for connection, _ in tuple(self.opened):
            connection.close()
        self.opened.clear()

    def abandon(self) -> None:
        """Make sure that nobody in this process touches connections that are another process's."""
        for connection, record in self.opened:
            # for ever: collecting it would close it
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))
            # lent to a thread that does not exist here: the pool would roll back what the parent is doing
            record.fairy_ref = None
        self.opened.clear()

    def deadline(self) -> contextlib.AbstractContextManager[object]:
        """Bound what the calling thread spends in here."""
        return contextlib.nullcontext()

    def error_of(self, error: BaseException) -> StoreError:
        """Turn an error of the driver into ours."""
        raise NotImplementedError

    def insert(self, table: sa.Table) -> Any:
        """Return an INSERT that knows ON CONFLICT."""
        raise NotImplementedError

    def unpack(self, columns: Iterable[sa.Column[Any]]) -> sa.CTE:
        """Return the rows of the JSON text `:batch`."""
        raise NotImplementedError

    @functools.cached_property
    def now(self) -> sa.ColumnElement[datetime]:
        """The moment that a statement goes by: `:now`, or the database's clock where that is NULL."""
        raise NotImplementedError

    def later(self, moment: sa.ColumnElement[Any], seconds: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
        raise NotImplementedError


class SQLite(Database):
    name = "sqlite"
    writes_in_with = False
    makes_itself = True
    host_clock = True
    # a deferred transaction that reads and then writes fails at once where this one waits
    begin = "BEGIN IMMEDIATE"

    def __init__(self, url: URL, role: str, timeout: float) -> None:
        import sqlite3

        if sqlite3.sqlite_version_info < (3, 37):
            raise StoreError(f"expected SQLite 3.37 or newer, this Python has {sqlite3.sqlite_version}")
        if not url.database or url.database == ":memory:":
            raise StoreError(
                f"expected the path of a file in {url}, as in sqlite:///jobs.db: an SQLite database in memory has one process"
            )
        # absolute, because a process may change its folder between two connections
        self.path = os.path.abspath(url.database)
        self.identity: tuple[int, int] | None = None
        super().__init__(url.set(drivername="sqlite", database=self.path), role, timeout)

    def connect_args(self) -> dict[str, Any]:
        return {"isolation_level": None, "timeout": PATIENCE[self.role]}

    def connected(self, connection: Any) -> None:
        kind = _network_filesystem(os.path.dirname(self.path))
        if kind:
            raise StoreError(
                f"{self.path} lies on a network file system ({kind}): SQLite's write-ahead log needs memory shared by "
                "all its processes; move the file to a local disk, or use PostgreSQL"
            )
        _in_wal_mode(connection)
        # FULL: an enqueue that was committed survives a power cut. NORMAL: it may take back the last claims
        # and outcomes, whose processes it has ended too.
        connection.execute(f"PRAGMA synchronous={'NORMAL' if self.role == 'supervisor' else 'FULL'}")
        found = os.stat(self.path)
        if self.identity is None:
            self.identity = found.st_dev, found.st_ino

    def check(self) -> None:
        # by its name only: to open the file and close it again would drop SQLite's own locks on it
        if self.identity is None:
            return
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            raise StoreError(f"{self.path} was deleted while it was open", replaced=True) from None
        except OSError as error:
            raise StoreUnavailable(f"{self.path}: {error.strerror}") from error
        if (found.st_dev, found.st_ino) != self.identity:
            raise StoreError(f"{self.path} was replaced by another file while it was open", replaced=True)

    def close(self) -> None:
        super().close()
        self.identity = None

    def abandon(self) -> None:
        super().abandon()
        self.identity = None

    def error_of(self, error: BaseException) -> StoreError:
        original = getattr(error, "orig", error)
        # the primary code is in the low byte
        code = (getattr(original, "sqlite_errorcode", None) or 0) & 0xFF
        text = f"{self.path}: {original}"
        if code == 14 and not os.path.isdir(folder := os.path.dirname(self.path)):  # CANTOPEN
            text = f"{self.path}: there is no folder {folder}"
        if code in (5, 6):  # BUSY, LOCKED
            return StoreUnavailable(text, busy=True)
        # PERM, NOMEM, READONLY, INTERRUPT, IOERR, FULL, CANTOPEN, PROTOCOL
        if code in (3, 7, 8, 9, 10, 13, 14, 15):
            return StoreUnavailable(text)
        if str(original).startswith(("no such table", "no such column", "table forkrunner_")):
            return _schema_error(str(original))
        return StoreError(text)

    def insert(self, table: sa.Table) -> Any:
        return sqlite.insert(table)

    def unpack(self, columns: Iterable[sa.Column[Any]]) -> sa.CTE:
        each = sa.func.json_each(sa.bindparam("batch", type_=sa.Text)).table_valued("value", name="each")
        fields = (
            sa.type_coerce(
                sa.func.json_extract(each.c.value, sa.literal_column(f"'$.{c.name}'")), c.type
            ).label(c.name)
            for c in columns
        )
        return sa.select(*fields).cte("batch").prefix_with("MATERIALIZED")

    @functools.cached_property
    def now(self) -> sa.ColumnElement[datetime]:
        return sa.bindparam("now", type_=Time)

    def later(self, moment: sa.ColumnElement[Any], seconds: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
        # SQLite's own date arithmetic knows milliseconds only, and rounds: a job could be due before it is
        def part(first: int, length: int) -> sa.ColumnElement[Any]:
            return sa.func.substr(moment, sa.literal_column(str(first)), sa.literal_column(str(length)))

        million = sa.literal_column("1000000", sa.BigInteger)
        micro = (
            sa.cast(sa.func.strftime(sa.literal_column("'%s'"), part(1, 19)), sa.BigInteger) * million
            + sa.cast(part(21, 6), sa.BigInteger)
            + sa.cast(sa.func.round(seconds * million), sa.BigInteger)
        )
        whole = sa.func.strftime(
            sa.literal_column("'%Y-%m-%dT%H:%M:%S'"), micro // million, sa.literal_column("'unixepoch'")
        )
        return sa.func.printf(sa.literal_column("'%s.%06dZ'"), whole, micro % million, type_=Time)


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
                connection.prepare_threshold = 2
                names = self.settings | {"default_transaction_isolation": "'read committed'"}
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
            return _schema_error(lines[0])
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


def alarm(seconds: float) -> contextlib.AbstractContextManager[object]:
    """Raise Silent in the block when that many seconds are over; in the main thread only, elsewhere do nothing."""
    if threading.current_thread() is not threading.main_thread():
        return contextlib.nullcontext()
    return _Alarm(seconds)


class _Alarm:
    # once more each second, because an exception raised while something is being collected gets lost

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.armed = False
        self.before: Any = None

    def __enter__(self) -> None:
        self.before = signal.signal(signal.SIGALRM, self.ring)
        self.armed = True
        signal.setitimer(signal.ITIMER_REAL, self.seconds, 1.0)

    def __exit__(self, *exc_info: object) -> None:
        # in this order: what rings from here on must neither raise nor meet the default handler, which kills
        self.armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self.before)

    def ring(self, *_: object) -> None:
        if self.armed:
            raise Silent


#: statfs(2): file systems whose processes may be on several hosts, or that do not share memory between them.
_NETWORK = {
    0x6969: "nfs",
    0x517B: "smb",
    0xFF534D42: "cifs",
    0xFE534D42: "smb2",
    0x01021997: "9p",
    0x65735546: "fuse",
    0x00C36400: "ceph",
    0x5346414F: "afs",
}


def _network_filesystem(folder: str) -> str | None:
    """Name the network file system on which a folder lies, or None."""
    if not sys.platform.startswith("linux"):
        return None
    # struct statfs begins with its type, as a word
    buffer = (ctypes.c_long * 64)()
    if ctypes.CDLL(None, use_errno=True).statfs(os.fsencode(folder), buffer) != 0:
        return None
    return _NETWORK.get(buffer[0] & 0xFFFFFFFF)


def _in_wal_mode(connection: Any) -> None:
    # the mode is the file's; to change it needs the file alone, and SQLite then does not wait for its turn
    import sqlite3

    patience = connection.execute("PRAGMA busy_timeout").fetchone()[0] / 1000
    end = clock.monotonic() + patience
    while True:
        try:
            if connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal":
                return
            if connection.execute("PRAGMA journal_mode=WAL").fetchone()[0] == "wal":
                return
            raise StoreError("SQLite refuses the write-ahead log for this file")
        except sqlite3.OperationalError as error:
            if (error.sqlite_errorcode & 0xFF) not in (5, 6) or clock.monotonic() >= end:
                raise
            pause(0.01)


def pause(seconds: float) -> None:
    # only while another process holds an SQLite file, and never longer than the caller's patience
    threading.Event().wait(seconds)


def _schema_error(found: str) -> SchemaError:
    return SchemaError(f"the database is not ready ({found}): run `forkrunner migrate`")
