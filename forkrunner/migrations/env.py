"""Run by Alembic inside `Store.migrate`, which owns the connection and its transaction.

Also by the `alembic` command of a developer, through `Store.migrate` only: there is no alembic.ini.
"""

from __future__ import annotations

from alembic import context

from forkrunner.schema import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    # the caller's transaction holds the lock that keeps two migrations apart: all or nothing, on both databases
    transactional_ddl=True,
    transaction_per_migration=False,
)
context.run_migrations()
