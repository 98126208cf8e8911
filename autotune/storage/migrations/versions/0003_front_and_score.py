"""Trials on the front, and trials by score, are found without reading all others."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

FRONT, SCORE = "ix_autotune_trial_front", "ix_autotune_trial_run_id_score"


def upgrade() -> None:
    """Create both indexes; that of the front holds its trials only."""
    on_front = sa.text("on_front")
    op.create_index(
        FRONT,
        "autotune_trial",
        ["run_id"],
        sqlite_where=on_front,
        postgresql_where=on_front,
    )
    op.create_index(SCORE, "autotune_trial", ["run_id", "score"])


def downgrade() -> None:
    """Drop both indexes."""
    op.drop_index(SCORE, "autotune_trial")
    op.drop_index(FRONT, "autotune_trial")
