"""Trials remember what their rehearsal counted."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; earlier trials were not rehearsed."""
    op.add_column("autotune_trial", sa.Column("rehearsed_bytes", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    """Drop the column."""
    op.drop_column("autotune_trial", "rehearsed_bytes")
