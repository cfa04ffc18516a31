"""The tables, as this release expects them. The migrations make them; a test compares the two.

All names begin with `forkrunner_`, because the tables live in the application's own database, beside its
`jobs` table and its `alembic_version`.

CAUTION: a change here needs a new file in `migrations/versions/` and its number at the end of REVISIONS.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator, TypeEngine

from .job import Outcome, State

#: Every revision that was ever released, oldest first; a normal start compares the last one with the version
#: table and so need not import Alembic.
REVISIONS = ("0001", "0002", "0003", "0004")
REVISION = REVISIONS[-1]
VERSION_TABLE = "forkrunner_version"

STATES = tuple(state.value for state in State)
OUTCOMES = tuple(outcome.value for outcome in Outcome)


def to_text(moment: datetime) -> str:
    """Write an aware moment as UTC text of a fixed width, so that text sorts as time does.

    Raises: ValueError for a naive one, which could mean any moment.
    """
    if moment.tzinfo is not UTC:
        if moment.tzinfo is None:
            raise ValueError(f"expected an aware datetime, got the naive {moment!r}")
        moment = moment.astimezone(UTC)
    return moment.isoformat(timespec="microseconds")[:26] + "Z"


class Time(TypeDecorator[datetime]):
    """An aware UTC datetime: timestamptz, or the text of `to_text` where the database has no such type."""

    impl = sa.String(27)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name == "postgresql":
            return dialect.type_descriptor(sa.TIMESTAMP(timezone=True))
        return dialect.type_descriptor(sa.String(27))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        if value is None or dialect.name == "postgresql":
            return value
        return to_text(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if isinstance(value, str):
            return datetime.fromisoformat(value)
        # PostgreSQL answers in the time zone of the session, which is not ours to set
        aware: datetime = value
        return aware.astimezone(UTC)


#: A UUID, native where there is one; canonical lower-case text in Python on both.
ID: TypeEngine[str] = sa.String(36).with_variant(postgresql.UUID(as_uuid=False), "postgresql")


def one_of(column: str, words: tuple[str, ...]) -> str:
    return f"{column} IN ({', '.join(repr(word) for word in words)})"


metadata = sa.MetaData()

jobs = sa.Table(
    "forkrunner_jobs",
    metadata,
    sa.Column("id", ID, primary_key=True),
    sa.Column("task", sa.Text, nullable=False),
    sa.Column("queue", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("run_at", Time, nullable=False),
    sa.Column("created_at", Time, nullable=False),
    sa.Column("started_at", Time),
    sa.Column("finished_at", Time),
    # JSON as it was given, never parsed by the database: jsonb refuses some of it and costs on every insert
    sa.Column("arguments", sa.Text, nullable=False),
    sa.Column("result", sa.Text),
    sa.Column("error", sa.Text),
    sa.Column("options", sa.Text),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("tries", sa.Integer, nullable=False),
    sa.Column("crashes", sa.Integer, nullable=False),
    sa.Column("supervisor", sa.Text),
    sa.Column("cancel_at", Time),
    sa.Column("cancel_reason", sa.Text),
    sa.Column("cancel_actor", sa.Text),
    sa.Column("paused_at", Time),
    sa.Column("cursor", sa.Text),
    sa.CheckConstraint(one_of("state", STATES), name="forkrunner_jobs_state"),
    # room on the page for the new version of a row, and a vacuum before the dead ones outnumber the live
    postgresql_with={
        "fillfactor": 70,
        "autovacuum_vacuum_scale_factor": 0.01,
        "autovacuum_analyze_scale_factor": 0.01,
    },
)

# Only live rows are in it, so that it stays small whatever the history holds. Written with OR: SQLite does not
# prove `state IN ('pending', 'busy')` from `state = 'pending'`, and then reads the whole table.
LIVE = "state = 'pending' OR state = 'busy'"
sa.Index(
    "forkrunner_jobs_live",
    jobs.c.state,
    jobs.c.priority.desc(),
    jobs.c.run_at,
    jobs.c.id,
    # a supervisor of some queues passes over the rows of others without reading them
    jobs.c.queue,
    sqlite_where=sa.text(LIVE),
    postgresql_where=sa.text(LIVE),
)

# No foreign key to the jobs: it would cost a row lock on every insert, and whoever deletes a job is the store.
attempts = sa.Table(
    "forkrunner_attempts",
    metadata,
    sa.Column("job_id", ID, primary_key=True),
    sa.Column("attempt", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("outcome", sa.Text, nullable=False),
    sa.Column("supervisor", sa.Text),
    sa.Column("host", sa.Text),
    sa.Column("pid", sa.Integer),
    sa.Column("started_at", Time),
    sa.Column("finished_at", Time),
    sa.Column("exit_status", sa.Integer),
    sa.Column("signal", sa.Text),
    sa.Column("error_type", sa.Text),
    sa.Column("error_message", sa.Text),
    sa.Column("traceback", sa.Text),
    sa.Column("stacks", sa.Text),
    sa.Column("output_tail", sa.Text),
    sa.Column("cpu_user_seconds", sa.Double),
    sa.Column("cpu_system_seconds", sa.Double),
    sa.Column("peak_memory_bytes", sa.BigInteger),
    # of its job, so that what a task costs can be told without a join
    sa.Column("task", sa.Text),
    sa.Column("waited_seconds", sa.Double),
    sa.Column("run_seconds", sa.Double),
    sa.Column("minor_faults", sa.BigInteger),
    sa.Column("major_faults", sa.BigInteger),
    sa.Column("voluntary_switches", sa.BigInteger),
    sa.Column("involuntary_switches", sa.BigInteger),
    sa.Column("leftover_processes", sa.Integer),
    sa.Column("output_bytes", sa.BigInteger),
    sa.Column("steps", sa.Text),
    sa.CheckConstraint(one_of("outcome", OUTCOMES), name="forkrunner_attempts_outcome"),
)

# What an attempt wrote, where that is more than `output_tail` has room for; most write less, and have no row here.
outputs = sa.Table(
    "forkrunner_outputs",
    metadata,
    sa.Column("job_id", ID, primary_key=True),
    sa.Column("attempt", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("text", sa.Text, nullable=False),
)

# The files of a job. What is in them lies in the storage, under its hash; it stays there as long as a row names it.
files = sa.Table(
    "forkrunner_files",
    metadata,
    sa.Column("job_id", ID, primary_key=True),
    # in the arguments, as `arguments.source`, or in the result, as `result[0]`
    sa.Column("place", sa.Text, primary_key=True),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("media_type", sa.Text),
    sa.Column("token", sa.Text),
)
sa.Index("forkrunner_files_sha256", files.c.sha256)
sa.Index("forkrunner_files_token", files.c.token, unique=True)

# What this installation knows of itself: `database_id`, by which a storage knows whose files it has.
notes = sa.Table(
    "forkrunner_notes",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)

supervisors = sa.Table(
    "forkrunner_supervisors",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("host", sa.Text, nullable=False),
    sa.Column("boot_id", sa.Text, nullable=False),
    sa.Column("pid_namespace", sa.Text, nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("start_ticks", sa.BigInteger, nullable=False),
    sa.Column("target", sa.Text, nullable=False),
    sa.Column("slots", sa.Integer, nullable=False),
    sa.Column("version", sa.Text, nullable=False),
    sa.Column("started_at", Time, nullable=False),
    sa.Column("lease_until", Time, nullable=False),
    sa.Column("molds", sa.Text),
)

# Mails, each the matter of the job of the same id that sends it. A row with `told_in` has no job: its matter is told in
# that mail. Deleted some weeks after they were sealed.
mails = sa.Table(
    "forkrunner_mails",
    metadata,
    sa.Column("id", ID, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    # what it has in common with those that are told of together
    sa.Column("fingerprint", sa.Text, nullable=False),
    sa.Column("task", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    # JSON list; an empty one: as the settings say when it is sent
    sa.Column("recipients", sa.Text, nullable=False),
    # the first attempt that it tells of, the last one, and how many they are
    sa.Column("job_id", ID, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("last_job_id", ID, nullable=False),
    sa.Column("last_attempt", sa.Integer, nullable=False),
    sa.Column("count", sa.Integer, nullable=False),
    sa.Column("created_at", Time, nullable=False),
    sa.Column("last_at", Time, nullable=False),
    sa.Column("due_at", Time, nullable=False),
    sa.Column("told_in", ID),
    # from when on what it tells of does not change any more
    sa.Column("sealed_at", Time),
    sa.Column("sent_at", Time),
    # JSON list: the recipients for whom a server has taken it
    sa.Column("delivered", sa.Text),
)

# At most one of each fingerprint is open: what fails alike goes into it, whichever supervisor saw it.
OPEN = "sealed_at IS NULL"
sa.Index(
    "forkrunner_mails_open",
    mails.c.fingerprint,
    unique=True,
    sqlite_where=sa.text(OPEN),
    postgresql_where=sa.text(OPEN),
)
sa.Index("forkrunner_mails_due", mails.c.due_at)
sa.Index("forkrunner_mails_sealed", mails.c.fingerprint, mails.c.sealed_at)

# Alembic's own table, as Alembic makes it.
version = sa.Table(
    VERSION_TABLE,
    sa.MetaData(),
    sa.Column("version_num", sa.String(32), nullable=False),
    sa.PrimaryKeyConstraint("version_num", name=f"{VERSION_TABLE}_pkc"),
)
