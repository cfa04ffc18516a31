"""The statements of the store, the same on both databases: built once, with parameters bound by name.

What clients send is in clientsql.py, what supervisors send in supervisorsql.py; here is what both have. Used by the
store only. Parameters: `batch` (JSON text, a list of objects), `now`, and others by name.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from .database import Database
from .internal import LOWEST

#: Of NOTIFY. The payload is the name of a queue that has a new job, or this: somebody wants something of a
#: running job. No queue can be called so.
CHANNEL, WISH = "forkrunner", "!"

# As literals: only from these can a database prove that the index of live rows has what is asked for.
PENDING = sa.literal_column("'pending'", sa.Text)
BUSY = sa.literal_column("'busy'", sa.Text)
DONE = sa.literal_column("'done'", sa.Text)
CANCELLED = sa.literal_column("'cancelled'", sa.Text)
#: The priority that only mails have.
MAILS = sa.literal_column(str(LOWEST), sa.Integer)
ZERO = sa.literal_column("0", sa.Integer)
ONE = sa.literal_column("1", sa.Integer)


class Statements:
    """Statements for one kind of database, each built when it is first asked for."""

    def __init__(self, database: Database) -> None:
        self.database = database


def columns_of(table: sa.Table, *names: str) -> list[sa.Column[Any]]:
    return [table.c[name] for name in names]
