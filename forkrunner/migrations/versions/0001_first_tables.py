"""The first tables: jobs, attempts, supervisors.

Names nothing of forkrunner.schema, which goes on changing after this.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None

ID = sa.String(36).with_variant(postgresql.UUID(as_uuid=False), "postgresql")
TIME = sa.String(27).with_variant(sa.TIMESTAMP(timezone=True), "postgresql")
LIVE = "state = 'pending' OR state = 'busy'"
STATES = "'pending', 'busy', 'done', 'failed', 'cancelled'"
OUTCOMES = (
    "'done', 'raised', 'exited', 'crashed', 'timed_out', 'over_memory', 'over_cpu', "
    "'out_of_memory', 'cancelled', 'requeued', 'lost'"
)


def upgrade() -> None:
    op.create_table(
        "forkrunner_jobs",
        sa.Column("id", ID, primary_key=True),
        sa.Column("task", sa.Text, nullable=False),
        sa.Column("queue", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("run_at", TIME, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("started_at", TIME),
        sa.Column("finished_at", TIME),
        sa.Column("arguments", sa.Text, nullable=False),
        sa.Column("result", sa.Text),
        sa.Column("error", sa.Text),
        sa.Column("options", sa.Text),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("tries", sa.Integer, nullable=False),
        sa.Column("crashes", sa.Integer, nullable=False),
        sa.Column("supervisor", sa.Text),
        sa.Column("cancel_at", TIME),
        sa.Column("cancel_reason", sa.Text),
        sa.CheckConstraint(f"state IN ({STATES})", name="forkrunner_jobs_state"),
        postgresql_with={
            "fillfactor": 70,
            "autovacuum_vacuum_scale_factor": 0.01,
            "autovacuum_analyze_scale_factor": 0.01,
        },
    )
    op.create_index(
        "forkrunner_jobs_live",
        "forkrunner_jobs",
        ["state", sa.text("priority DESC"), "run_at", "id", "queue"],
        sqlite_where=sa.text(LIVE),
        postgresql_where=sa.text(LIVE),
    )
    op.create_table(
        "forkrunner_attempts",
        sa.Column("job_id", ID, primary_key=True),
        sa.Column("attempt", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("supervisor", sa.Text),
        sa.Column("host", sa.Text),
        sa.Column("pid", sa.Integer),
        sa.Column("started_at", TIME),
        sa.Column("finished_at", TIME),
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
        sa.CheckConstraint(f"outcome IN ({OUTCOMES})", name="forkrunner_attempts_outcome"),
    )
    op.create_table(
        "forkrunner_supervisors",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("boot_id", sa.Text, nullable=False),
        sa.Column("pid_namespace", sa.Text, nullable=False),
        sa.Column("pid", sa.Integer, nullable=False),
        sa.Column("start_ticks", sa.BigInteger, nullable=False),
        sa.Column("target", sa.Text, nullable=False),
        sa.Column("slots", sa.Integer, nullable=False),
        sa.Column("version", sa.Text, nullable=False),
        sa.Column("started_at", TIME, nullable=False),
        sa.Column("lease_until", TIME, nullable=False),
    )
