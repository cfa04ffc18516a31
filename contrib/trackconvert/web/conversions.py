"""What the site keeps: who asked for which conversion, in a table beside the jobs.

A conversion and its job are one transaction: neither is there without the other. How the job stands, and its files, are
forkrunner's to say and to keep.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import islice
from threading import Lock
from typing import IO

import sqlalchemy as sa
from sqlalchemy import exc

from forkrunner import InputFile, Runner
from trackconvert import ImageSize

#: After that time a conversion is removed; jobs and files are, as their runner says.
KEPT = timedelta(days=7)
#: Of these at most, at each upload.
_REMOVED_AT_ONCE = 20

_metadata = sa.MetaData()
_table = sa.Table(
    "trackconvert_conversions",
    _metadata,
    sa.Column("token", sa.String(43), primary_key=True),
    sa.Column("job_id", sa.String(36), nullable=False, unique=True),
    # the hash of the visitor's cookie: who reads the table cannot be the visitor
    sa.Column("session", sa.String(64), nullable=False),
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("target", sa.String(20), nullable=False),
    # seconds since 1970
    sa.Column("created_at", sa.BigInteger, nullable=False, index=True),
    sa.Index("trackconvert_conversions_of", "session", "created_at"),
)


@dataclass(frozen=True)
class Upload:
    """A file of an upload: what its owner calls it, for people only, and its content."""

    name: str
    stream: IO[bytes]


@dataclass(frozen=True)
class Conversion:
    """A row of the table."""

    #: Of its page and its result: who does not know it finds neither.
    token: str
    job_id: str
    session: str
    name: str
    target: str
    created_at: datetime


class Conversions:
    """Access to the table. Threads may share it, forks inherit it before its first use."""

    def __init__(self, runner: Runner) -> None:
        """Prepare; nothing is connected or made before the first use."""
        self._runner = runner
        self._engine: sa.Engine | None = None
        self._lock = Lock()
        # a job never changes hands; and what is unknown raises, which is not remembered
        self._owner = lru_cache(10_000)(self._ask_owner)

    def add(
        self, session: str, uploads: Sequence[Upload], target: str, size: ImageSize, demo_seconds: float
    ) -> list[Conversion]:
        """Make a job of each file, which is stored with it: all of them, or none."""
        self._remove_old()
        created = datetime.now(UTC).replace(microsecond=0)
        # by its name: the site may be served with another runner than the one of the module
        calls = [
            self._runner.call(
                "convert",
                {
                    "source": InputFile.from_stream(upload.stream, name=upload.name),
                    "target": target,
                    "width": size.width,
                    "height": size.height,
                    "demo_seconds": demo_seconds,
                },
            )
            for upload in uploads
        ]
        with self._begin() as connection:
            jobs = self._runner.enqueue_many(calls, connection=connection)
            found = [
                Conversion(secrets.token_urlsafe(32), job.id, hashed(session), upload.name, target, created)
                for job, upload in zip(jobs, uploads, strict=True)
            ]
            connection.execute(
                _table.insert(),
                [vars(each) | {"created_at": int(created.timestamp())} for each in found],
            )
        return found

    def recent(self, session: str, limit: int) -> list[Conversion]:
        """Return the newest conversions of this visitor."""
        query = _table.select().where(_table.c.session == hashed(session))
        with self._begin() as connection:
            rows = connection.execute(
                query.order_by(_table.c.created_at.desc(), _table.c.job_id.desc()).limit(limit)
            )
            return [_conversion(row) for row in rows]

    def get(self, token: str) -> Conversion | None:
        with self._begin() as connection:
            row = connection.execute(_table.select().where(_table.c.token == token)).one_or_none()
        return _conversion(row) if row else None

    def is_of(self, session: str, job_id: str) -> bool:
        """Say whether a job is this visitor's; the table is asked once for each job."""
        try:
            return secrets.compare_digest(self._owner(job_id), hashed(session))
        except LookupError:
            return False

    def _ask_owner(self, job_id: str) -> str:
        with self._begin() as connection:
            query = sa.select(_table.c.session).where(_table.c.job_id == job_id)
            found: str | None = connection.scalar(query)
        if found is None:
            raise LookupError(job_id)
        return found

    def _remove_old(self) -> None:
        before = int((datetime.now(UTC) - KEPT).timestamp())
        old = sa.select(_table.c.token).where(_table.c.created_at < before).limit(_REMOVED_AT_ONCE)
        with self._begin() as connection:
            if tokens := list(connection.scalars(old)):
                connection.execute(_table.delete().where(_table.c.token.in_(tokens)))

    # -- the database

    @contextmanager
    def _begin(self) -> Iterator[sa.Connection]:
        """Open a transaction; the first one makes the table."""
        with self._lock:
            if self._engine is None:
                self._engine = self._open()
            engine = self._engine
        with engine.begin() as connection:
            yield connection

    def _open(self) -> sa.Engine:
        engine = sa.create_engine(self._runner.settings.database, pool_pre_ping=True)
        try:
            _metadata.create_all(engine)
        except exc.DBAPIError:  # maybe another process makes it at the same moment
            _metadata.create_all(engine)
        return engine

    def close(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.dispose()


def hashed(session: str) -> str:
    return hashlib.sha256(session.encode()).hexdigest()


def _conversion(row: sa.Row[tuple[object, ...]]) -> Conversion:
    fields = dict(row._mapping)
    return Conversion(**fields | {"created_at": datetime.fromtimestamp(fields["created_at"], UTC)})


def lines_near(stream: IO[bytes], line: int, around: int = 2) -> list[tuple[int, str]]:
    """Return the lines of a file near one that was refused, with their numbers, fit to be shown."""
    first = max(line - around, 1)
    return [
        (number, _shown(text)) for number, text in enumerate(islice(stream, first - 1, line + around), first)
    ]


def _shown(raw: bytes, limit: int = 120) -> str:
    text = raw[: 4 * limit].decode(errors="replace").strip("\r\n").expandtabs(4)
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return text if len(text) <= limit else text[: limit - 1] + "…"
