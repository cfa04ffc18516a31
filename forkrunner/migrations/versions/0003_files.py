"""The files of jobs, and what an installation knows of itself.

Names nothing of forkrunner.schema, which goes on changing after this.
"""

from __future__ import annotations

import uuid

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"

ID = sa.String(36).with_variant(postgresql.UUID(as_uuid=False), "postgresql")


def upgrade() -> None:
    op.create_table(
        "forkrunner_files",
        sa.Column("job_id", ID, primary_key=True),
        sa.Column("place", sa.Text, primary_key=True),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("media_type", sa.Text),
        sa.Column("token", sa.Text),
    )
    op.create_index("forkrunner_files_sha256", "forkrunner_files", ["sha256"])
    op.create_index("forkrunner_files_token", "forkrunner_files", ["token"], unique=True)
    notes = op.create_table(
        "forkrunner_notes",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
    )
    op.bulk_insert(notes, [{"name": "database_id", "value": uuid.uuid4().hex}])
