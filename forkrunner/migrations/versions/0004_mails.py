"""Mails that are to be sent, and that were.

Names nothing of forkrunner.schema, which goes on changing after this.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"

ID = sa.String(36).with_variant(postgresql.UUID(as_uuid=False), "postgresql")
TIME = sa.String(27).with_variant(sa.TIMESTAMP(timezone=True), "postgresql")


def upgrade() -> None:
    op.create_table(
        "forkrunner_mails",
        sa.Column("id", ID, primary_key=True),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("fingerprint", sa.Text, nullable=False),
        sa.Column("task", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("recipients", sa.Text, nullable=False),
        sa.Column("job_id", ID, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("last_job_id", ID, nullable=False),
        sa.Column("last_attempt", sa.Integer, nullable=False),
        sa.Column("count", sa.Integer, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("last_at", TIME, nullable=False),
        sa.Column("due_at", TIME, nullable=False),
        sa.Column("told_in", ID),
        sa.Column("sealed_at", TIME),
        sa.Column("sent_at", TIME),
        sa.Column("delivered", sa.Text),
    )
    op.create_index(
        "forkrunner_mails_open",
        "forkrunner_mails",
        ["fingerprint"],
        unique=True,
        sqlite_where=sa.text("sealed_at IS NULL"),
        postgresql_where=sa.text("sealed_at IS NULL"),
    )
    op.create_index("forkrunner_mails_due", "forkrunner_mails", ["due_at"])
    op.create_index("forkrunner_mails_sealed", "forkrunner_mails", ["fingerprint", "sealed_at"])
