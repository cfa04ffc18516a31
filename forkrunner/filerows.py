"""The rows of `forkrunner_files`: written with their job, and with its ending; and what is asked about them.

Used by the files of the store only, within its transactions. A job without files sends none of these statements.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from .batches import clean, pack
from .records import File
from .schema import ID, files, notes

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from .database import Database

_COLUMNS = tuple(column.name for column in files.columns)
#: What the place of a file in a result begins with; in arguments it is `arguments`.
RESULT = "result"


class FileRows:
    """The statements, built once for each kind of database."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def insert(self, connection: Connection, rows: Iterable[File]) -> None:
        """Insert rows; one that is there already is overwritten, so that the same call may be made again."""
        batch = pack(
            [{name: clean(value) if isinstance(value := getattr(row, name), str) else value for name in _COLUMNS}
             for row in rows]
        )  # fmt: skip
        connection.execute(self._insert, {"batch": batch})

    @functools.cached_property
    def _insert(self) -> Any:
        batch = self.database.unpack(files.c)
        # WHERE, because after a bare FROM SQLite takes ON for the beginning of a join
        rows = sa.select(*(batch.c[name] for name in _COLUMNS)).where(batch.c.job_id.is_not(None))
        insert = self.database.insert(files).from_select(_COLUMNS, rows, include_defaults=False)
        return insert.on_conflict_do_update(
            index_elements=[files.c.job_id, files.c.place],
            set_={name: insert.excluded[name] for name in _COLUMNS if name not in ("job_id", "place")},
        )

    def drop_results(self, connection: Connection, job: str) -> None:
        """Forget the files of a result that is taken back."""
        connection.execute(self._drop_results, {"job": job})

    @functools.cached_property
    def _drop_results(self) -> Any:
        return sa.delete(files).where(_of_job(), files.c.place.startswith(RESULT))

    def of_job(self, connection: Connection, job: str) -> list[File]:
        return [File(*row) for row in connection.execute(self._of_job, {"job": job})]

    @functools.cached_property
    def _of_job(self) -> Any:
        return sa.select(*files.c).where(_of_job()).order_by(files.c.place)

    def with_token(self, connection: Connection, token: str) -> File | None:
        row = connection.execute(self._with_token, {"token": token}).one_or_none()
        return None if row is None else File(*row)

    @functools.cached_property
    def _with_token(self) -> Any:
        return sa.select(*files.c).where(files.c.token == sa.bindparam("token", type_=sa.Text))

    def named(self, connection: Connection, hashes: Collection[str]) -> set[str]:
        """Return those of these hashes that a row names."""
        return set(connection.execute(self._named, {"hashes": list(hashes)}).scalars())

    @functools.cached_property
    def _named(self) -> Any:
        wanted = files.c.sha256.in_(sa.bindparam("hashes", expanding=True, type_=sa.Text))
        return sa.select(files.c.sha256).where(wanted).distinct()

    def note(self, connection: Connection, name: str) -> str | None:
        found: str | None = connection.execute(self._note, {"name": name}).scalar()
        return found

    @functools.cached_property
    def _note(self) -> Any:
        return sa.select(notes.c.value).where(notes.c.name == sa.bindparam("name", type_=sa.Text))


def _of_job() -> sa.ColumnElement[bool]:
    return files.c.job_id == sa.bindparam("job", type_=ID)
