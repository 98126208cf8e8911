"""The first schema: runs, trials and what was measured of them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create every table."""
    _create_run()
    _create_trial()
    _create_score()
    _create_knob_value()
    _create_measurement()
    _create_anatomy()
    _create_environment()
    _create_event()
    _create_artifact()


def downgrade() -> None:
    """Drop every table."""
    for name in (
        "artifact",
        "event",
        "environment",
        "anatomy",
        "measurement",
        "knob_value",
        "score",
        "trial",
        "run",
    ):
        op.drop_table(f"autotune_{name}")


def _create_run() -> None:
    op.create_table(
        "autotune_run",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("started", sa.Double(), nullable=False),
        sa.Column("finished", sa.Double(), nullable=True),
        sa.Column("elapsed", sa.Double(), nullable=False),
        sa.Column("spec", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.String(length=12), nullable=False),
        sa.Column("budget_bytes", sa.BigInteger(), nullable=False),
        sa.Column("headroom", sa.Double(), nullable=False),
        sa.Column("limit_bytes", sa.BigInteger(), nullable=False),
        sa.Column("objective", sa.String(length=200), nullable=False),
        sa.Column("metric", sa.String(length=200), nullable=False),
        sa.Column("maximize", sa.Boolean(), nullable=False),
        sa.Column("space", sa.String(length=200), nullable=False),
        sa.Column("sampler", sa.String(length=200), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("device", sa.String(length=200), nullable=False),
        sa.Column("driver_pid", sa.Integer(), nullable=False),
        sa.Column("driver_host", sa.String(length=200), nullable=False),
        sa.Column("driver_born", sa.Double(), nullable=False),
        sa.Column("heartbeat", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_autotune_run"),
        sa.UniqueConstraint("name", name="uq_autotune_run_name"),
    )


def _create_trial() -> None:
    op.create_table(
        "autotune_trial",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("config", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.String(length=12), nullable=False),
        sa.Column("accuracy_key", sa.String(length=12), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("origin", sa.String(length=16), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("started", sa.Double(), nullable=False),
        sa.Column("finished", sa.Double(), nullable=True),
        sa.Column("limit_bytes", sa.BigInteger(), nullable=False),
        sa.Column("feasible", sa.Boolean(), nullable=False),
        sa.Column("on_front", sa.Boolean(), nullable=False),
        sa.Column("score", sa.Double(), nullable=True),
        sa.Column("stderr", sa.Double(), nullable=True),
        sa.Column("seconds", sa.Double(), nullable=True),
        sa.Column("peak_bytes", sa.BigInteger(), nullable=True),
        sa.Column("footprint_bytes", sa.BigInteger(), nullable=True),
        sa.Column("step_seconds", sa.Double(), nullable=True),
        sa.Column("throughput", sa.Double(), nullable=True),
        sa.Column("steps", sa.Integer(), nullable=True),
        sa.Column("parameters", sa.BigInteger(), nullable=True),
        sa.Column("trained_parameters", sa.BigInteger(), nullable=True),
        sa.Column("failure", sa.Text(), nullable=True),
        sa.Column("phase", sa.String(length=16), nullable=True),
        sa.Column("step", sa.Integer(), nullable=True),
        sa.Column("needed_bytes", sa.BigInteger(), nullable=True),
        sa.Column("signal", sa.String(length=16), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("traceback", sa.Text(), nullable=True),
        sa.Column("outcome", sa.Text(), nullable=True),
        sa.UniqueConstraint("run_id", "number", name="uq_autotune_trial_run_id_number"),
        sa.ForeignKeyConstraint(
            ["run_id"], ["autotune_run.id"], name="fk_autotune_trial_run_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_autotune_trial"),
    )
    op.create_index(
        "ix_autotune_trial_run_id_accuracy_key", "autotune_trial", ["run_id", "accuracy_key"]
    )
    op.create_index("ix_autotune_trial_run_id_status", "autotune_trial", ["run_id", "status"])


def _create_score() -> None:
    op.create_table(
        "autotune_score",
        sa.Column("trial_id", sa.Integer(), nullable=False),
        sa.Column("metric", sa.String(length=200), nullable=False),
        sa.Column("value", sa.Double(), nullable=True),
        sa.Column("stderr", sa.Double(), nullable=True),
        sa.Column("n", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["trial_id"],
            ["autotune_trial.id"],
            name="fk_autotune_score_trial_id",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("trial_id", "metric", name="pk_autotune_score"),
    )


def _create_knob_value() -> None:
    op.create_table(
        "autotune_knob_value",
        sa.Column("trial_id", sa.Integer(), nullable=False),
        sa.Column("knob", sa.String(length=200), nullable=False),
        sa.Column("value", sa.String(length=200), nullable=False),
        sa.Column("number", sa.Double(), nullable=True),
        sa.Column("neutral", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["trial_id"],
            ["autotune_trial.id"],
            name="fk_autotune_knob_value_trial_id",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("trial_id", "knob", name="pk_autotune_knob_value"),
    )
    op.create_index("ix_autotune_knob_value_knob_value", "autotune_knob_value", ["knob", "value"])


def _create_measurement() -> None:
    op.create_table(
        "autotune_measurement",
        sa.Column("trial_id", sa.Integer(), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=False),
        sa.Column("phase", sa.String(length=16), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["trial_id"],
            ["autotune_trial.id"],
            name="fk_autotune_measurement_trial_id",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint(
            "trial_id", "rank", "phase", "kind", name="pk_autotune_measurement"
        ),
    )


def _create_anatomy() -> None:
    op.create_table(
        "autotune_anatomy",
        sa.Column("trial_id", sa.Integer(), nullable=False),
        sa.Column("part", sa.String(length=16), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["trial_id"],
            ["autotune_trial.id"],
            name="fk_autotune_anatomy_trial_id",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("trial_id", "part", name="pk_autotune_anatomy"),
    )


def _create_environment() -> None:
    op.create_table(
        "autotune_environment",
        sa.Column("run_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id"],
            ["autotune_run.id"],
            name="fk_autotune_environment_run_id",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("run_id", "name", name="pk_autotune_environment"),
    )


def _create_event() -> None:
    op.create_table(
        "autotune_event",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.Integer(), nullable=False),
        sa.Column("trial", sa.Integer(), nullable=True),
        sa.Column("time", sa.Double(), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("data", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id"], ["autotune_run.id"], name="fk_autotune_event_run_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_autotune_event"),
    )
    op.create_index("ix_autotune_event_run_id_trial", "autotune_event", ["run_id", "trial"])


def _create_artifact() -> None:
    op.create_table(
        "autotune_artifact",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.Integer(), nullable=False),
        sa.Column("trial", sa.Integer(), nullable=True),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id"], ["autotune_run.id"], name="fk_autotune_artifact_run_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_autotune_artifact"),
    )
    op.create_index("ix_autotune_artifact_run_id_trial", "autotune_artifact", ["run_id", "trial"])
