"""What a store needs of a database, whichever it is: to connect and begin, to unpack a batch, to read an error.

Used by the files that the store is made of; the two that there are, are in sqlite.py and postgresql.py, and the statements
are otherwise the same on both. The drivers are in autocommit; the "begin" event of SQLAlchemy sends what begins a
transaction, in one round trip, except on a connection with the option BARE, on which each statement stands by itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import signal
import threading
from collections.abc import Iterable
from datetime import datetime
from typing import Any, ClassVar

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, Engine

from . import clock
from .errors import SchemaError, StoreError
from .units import mask

#: Execution options of a connection whose statements each stand by themselves.
BARE = {"forkrunner_bare": True}
#: Seconds that a call waits for the lock of an SQLite file; a supervisor has other things to do meanwhile.
PATIENCE = {"client": 10.0, "supervisor": 0.05}


class Database:
    """One kind of database: how to connect and begin, how a batch is unpacked, what an error means."""

    name: ClassVar[str]
    #: An INSERT may stand in a WITH beside the UPDATE whose rows it takes.
    writes_in_with: ClassVar[bool]
    #: The tables are made at the first use, by whoever comes first.
    makes_itself: ClassVar[bool]
    #: Its clock is this host's, which the caller reads; otherwise a statement asks the database's own.
    host_clock: ClassVar[bool]

    def __init__(self, url: URL, role: str, timeout: float) -> None:
        self.url = url
        self.role = role
        self.timeout = timeout
        #: Connections of the driver that are open, each with the pool's record of it.
        self.opened: list[tuple[Any, Any]] = []

    def __str__(self) -> str:
        return mask(self.url.render_as_string(hide_password=True))

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

    def is_missing(self) -> bool:
        """Say whether there is no database yet, which the first use would make: a question about a job must not."""
        return False

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


def schema_error(found: str) -> SchemaError:
    """Word that the tables are missing or another release's, by what the database could not find."""
    return SchemaError(f"the database is not ready ({found}): run `forkrunner migrate`")


def pause(seconds: float) -> None:
    # only while another process holds an SQLite file, and never longer than the caller's patience
    threading.Event().wait(seconds)


# --- The last way to end a call that hangs


class Silent(BaseException):
    """The database did not answer in time.

    Not an Exception: only then does SQLAlchemy give the connection up, which has a command in flight.
    """


def alarm(seconds: float) -> contextlib.AbstractContextManager[object]:
    """Raise Silent in the block when that many seconds are over; in the main thread only, elsewhere do nothing."""
    if threading.current_thread() is not threading.main_thread():
        return contextlib.nullcontext()
    return _Alarm(seconds)


class _Alarm:
    # once more each second, because an exception raised while something is being collected gets lost

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.end = 0.0
        self.armed = False
        self.before: Any = None

    def __enter__(self) -> None:
        self.end = clock.monotonic() + self.seconds
        self.before = signal.signal(signal.SIGALRM, self.ring)
        self.armed = True
        signal.setitimer(signal.ITIMER_REAL, self.seconds, 1.0)

    def __exit__(self, *exc_info: object) -> None:
        # in this order: what rings from here on must neither raise nor meet the default handler, which kills
        self.armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self.before)

    def ring(self, *_: object) -> None:
        # before its time it is somebody else's signal, and says nothing of the database
        if self.armed and clock.monotonic() >= self.end:
            raise Silent
