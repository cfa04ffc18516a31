"""Which release the tables are of, and how they become those of this one.

Used by `transactions.py` and `access.py` only: at the first use of a database, and by `forkrunner migrate`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy import exc

from .database import BARE, PATIENCE
from .errors import SchemaError
from .schema import REVISION, REVISIONS, metadata, version

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Engine

    from .database import Database

#: A number of our own, so that two migrations wait for each other.
_MIGRATION_LOCK = 0x666F726B


def migrate(database: Database, engine: Engine, role: str) -> tuple[str | None, str]:
    """Bring the tables to this release; return the revision before and after. See `Store.migrate`."""
    from alembic import command
    from alembic.config import Config

    with engine.connect() as connection:
        connection = connection.execution_options(**BARE)
        # not the begin of other calls, whose timeouts are for statements of some milliseconds
        if database.makes_itself:
            connection.exec_driver_sql("PRAGMA busy_timeout = 10000")
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.exec_driver_sql("BEGIN")
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})")
        before = _revision(connection)
        if before is not None and before not in REVISIONS:
            raise _other_schema(database, before)
        if before != REVISION:
            config = Config()
            config.set_main_option("script_location", f"{__package__}:migrations")
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
        connection.commit()
        if database.makes_itself:
            patience = round(PATIENCE[role] * 1000)
            connection.exec_driver_sql(f"PRAGMA busy_timeout = {patience}")
    return before, REVISION


def _revision(connection: Connection) -> str | None:
    if not sa.inspect(connection).has_table(version.name):
        return None
    return connection.execute(sa.select(version.c.version_num)).scalar()


def see(database: Database, engine: Engine, role: str) -> None:
    """See that the tables are there and of this release; those of an empty SQLite file are made.

    Raises: SchemaError with what to run.
    """
    # once for each engine: a start costs one SELECT, and no import of Alembic
    try:
        with engine.connect() as connection:
            connection.execution_options(**BARE)
            found = connection.execute(sa.select(version.c.version_num)).scalar()
    except exc.DBAPIError as error:
        if not isinstance(database.error_of(error), SchemaError):
            raise
        found = None
    if found is None and database.makes_itself:
        # an empty file, or none: the connection has just made it
        _make(database, engine, role)
    elif found != REVISION:
        raise _other_schema(database, found)


def _make(database: Database, engine: Engine, role: str) -> None:
    """Make the tables as they are declared: what all migrations would do, without Alembic's 9 MB and half a second."""
    with engine.connect() as connection:
        connection = connection.execution_options(**BARE)
        connection.exec_driver_sql("PRAGMA busy_timeout = 10000")
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        # another process may have made them by now, or an older release long ago
        found = _revision(connection)
        if found is None:
            metadata.create_all(connection)
            version.create(connection)
            connection.execute(version.insert().values(version_num=REVISION))
        connection.commit()
        connection.exec_driver_sql(f"PRAGMA busy_timeout = {round(PATIENCE[role] * 1000)}")
    if found not in (None, REVISION):
        raise _other_schema(database, found)


def _other_schema(database: Database, found: str | None) -> SchemaError:
    if found is None:
        return SchemaError(f"{database} has no tables of forkrunner: run `forkrunner migrate`", found=found)
    if found in REVISIONS:
        return SchemaError(
            f"the tables in {database} are of revision {found}, expected {REVISION}: run `forkrunner migrate`",
            found=found,
        )
    return SchemaError(
        f"the tables in {database} are of revision {found}, which is newer than {REVISION}: "
        "install the release of forkrunner that made them",
        found=found,
    )
