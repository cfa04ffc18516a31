"""SQLite: one file on a local disk, in its write-ahead mode, with the host's clock.

SQLite cannot be interrupted in its wait for a lock, so a supervisor waits 50 ms for it and comes again.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from collections.abc import Iterable
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite
from sqlalchemy.engine import URL

from . import clock
from .database import PATIENCE, Database, pause, schema_error
from .errors import StoreError, StoreUnavailable
from .schema import Time


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

    def is_missing(self) -> bool:
        return self.identity is None and not os.path.exists(self.path)

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
            return schema_error(str(original))
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
