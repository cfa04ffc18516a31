"""What an attempt has cost and how it was ended; a table for what it wrote; what people want of a job.

Names nothing of forkrunner.schema, which goes on changing after this.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"

ID = sa.String(36).with_variant(postgresql.UUID(as_uuid=False), "postgresql")
TIME = sa.String(27).with_variant(sa.TIMESTAMP(timezone=True), "postgresql")


def upgrade() -> None:
    op.add_column("forkrunner_jobs", sa.Column("cancel_actor", sa.Text))
    op.add_column("forkrunner_jobs", sa.Column("paused_at", TIME))
    op.add_column("forkrunner_jobs", sa.Column("cursor", sa.Text))
    for column in (
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
    ):
        op.add_column("forkrunner_attempts", column)
    op.add_column("forkrunner_supervisors", sa.Column("molds", sa.Text))
    op.create_table(
        "forkrunner_outputs",
        sa.Column("job_id", ID, primary_key=True),
        sa.Column("attempt", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("text", sa.Text, nullable=False),
    )
