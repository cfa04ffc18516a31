"""The caller's own transaction, in which a job may be enqueued: what was given, and whether it is to our database.

Used by `Store.enqueue` only. Nothing of the caller's is committed, rolled back or flushed here.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from sqlalchemy.engine import Connection

from .errors import EnqueueError, SchemaError, StoreUnavailable
from .sqlite import SQLite
from .transactions import Transactions

if TYPE_CHECKING:
    from .database import Database


def connection_of(given: Any, database: Database) -> Connection:
    """Return the connection of what the caller has given.

    Raises: EnqueueError: it is no such thing, or one to another database.
    """
    found = given
    orm = sys.modules.get("sqlalchemy.orm")
    if orm is not None and isinstance(given, (orm.Session, orm.scoped_session)):
        found = given.connection()
    if not isinstance(found, Connection):
        kind = type(given).__name__
        hint = "a SQLAlchemy Session or Connection"
        if kind.lower().startswith("async"):
            hint += ": inside `await given.run_sync(…)` there is one"
        raise EnqueueError(f"expected as connection {hint}, got {kind}")
    url = found.engine.url
    same = found.dialect.name == database.name
    if same and isinstance(database, SQLite):
        same = bool(url.database) and os.path.realpath(url.database or "") == os.path.realpath(database.path)
    if not same:
        raise EnqueueError(
            f"expected a connection to the database of the jobs, {database}, "
            f"got one to {url.render_as_string(hide_password=True)}"
        )
    return found


def begin(theirs: Connection, database: Database) -> None:
    """Begin their transaction where their driver would not do it before a statement of ours."""
    if isinstance(database, SQLite):
        raw: Any = theirs.connection.driver_connection
        # sqlite3 begins a transaction by itself before INSERT, but not before the WITH of ours: as the first
        # statement of the caller's transaction it would be committed at once
        if getattr(raw, "isolation_level", None) is not None and not raw.in_transaction:
            theirs.exec_driver_sql("BEGIN")


def make_beside(database: Database) -> None:
    """Make the tables of an SQLite file before a transaction of the caller's is to write to them.

    Raises: SchemaError: the caller's transaction keeps us from it.
    """
    # through a connection of our own: a look through the caller's would fix its snapshot before the tables are
    # made. Without patience: the caller's own transaction may hold the lock of the file.
    beside = Transactions(type(database)(database.url, "supervisor", 5.0), "supervisor")
    try:
        beside.read(lambda connection: None)
    except StoreUnavailable as error:
        raise SchemaError(
            "the tables of forkrunner are not there yet, and this transaction keeps others from making them: "
            "run `forkrunner migrate` first"
        ) from error
    finally:
        beside.close()
