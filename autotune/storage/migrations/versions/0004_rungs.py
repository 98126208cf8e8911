"""Trials that pause have a score at each rung, apart from those of whole trainings."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

TABLE = "autotune_rung"


def upgrade() -> None:
    """Create the table; earlier trials were trained at once."""
    op.create_table(
        TABLE,
        sa.Column("trial_id", sa.Integer(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("metric", sa.String(200), nullable=False),
        sa.Column("steps", sa.Integer(), nullable=False),
        sa.Column("share", sa.Double(), nullable=False),
        sa.Column("value", sa.Double(), nullable=True),
        sa.Column("stderr", sa.Double(), nullable=True),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["trial_id"],
            ["autotune_trial.id"],
            name=f"fk_{TABLE}_trial_id",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("trial_id", "step", "metric", name=f"pk_{TABLE}"),
    )


def downgrade() -> None:
    """Drop the table."""
    op.drop_table(TABLE)
