"""Trials near the front are trained with further seeds, each of which has a row of its own."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

TABLE = "autotune_repeat"


def upgrade() -> None:
    """Create the table; no earlier trial was repeated."""
    op.create_table(
        TABLE,
        sa.Column("trial_id", sa.Integer(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("started", sa.Double(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("score", sa.Double(), nullable=True),
        sa.Column("stderr", sa.Double(), nullable=True),
        sa.Column("peak_bytes", sa.BigInteger(), nullable=False),
        sa.Column("failure", sa.Text(), nullable=True),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["trial_id"],
            ["autotune_trial.id"],
            name=f"fk_{TABLE}_trial_id",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("trial_id", "seed", name=f"pk_{TABLE}"),
    )


def downgrade() -> None:
    """Drop the table."""
    op.drop_table(TABLE)
