"""Tables of the study database, all with the prefix `autotune_`.

Optuna keeps its own tables in the same database and never meets these. What is asked of a trial
by SQL has a column; the whole outcome stands beside it as JSON, so that reading a trial back gives
exactly what was recorded. Byte counts and parameter counts are 64 bits wide, times are Unix
seconds. A change here needs a migration in `migrations/versions`; a test compares the two.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Double,
    ForeignKey,
    Index,
    MetaData,
    String,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

RUNNING, INTERRUPTED, DONE, FAILED = "running", "interrupted", "done", "failed"
PAUSED = "paused"
"""Of a trial that waits to go on; a row that runs with the outcome of a pause goes on from it."""

_NAMES = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
    "pk": "pk_%(table_name)s",
}


class Base(DeclarativeBase):
    """Carries the metadata of all tables."""

    metadata = MetaData(naming_convention=_NAMES)
    type_annotation_map = {str: String(200), float: Double}  # noqa: RUF012  read by SQLAlchemy


class RunRow(Base):
    """One run: what it depends on, how it stands, and who drives it.

    The driver is the process that writes; `heartbeat` is when it last did, and `elapsed` sums the
    seconds in which a driver was at work, so that pauses before a resume do not count.
    """

    __tablename__ = "autotune_run"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    status: Mapped[str] = mapped_column(String(16))
    started: Mapped[float]
    finished: Mapped[float | None]
    elapsed: Mapped[float]
    spec: Mapped[str] = mapped_column(Text)
    fingerprint: Mapped[str] = mapped_column(String(12))
    budget_bytes: Mapped[int] = mapped_column(BigInteger)
    headroom: Mapped[float]
    limit_bytes: Mapped[int] = mapped_column(BigInteger)
    objective: Mapped[str]
    metric: Mapped[str]
    maximize: Mapped[bool]
    space: Mapped[str]
    sampler: Mapped[str]
    seed: Mapped[int] = mapped_column(BigInteger)
    device: Mapped[str]
    driver_pid: Mapped[int]
    driver_host: Mapped[str]
    driver_born: Mapped[float]
    heartbeat: Mapped[float]


class TrialRow(Base):
    """One trial: its configuration, how it ended, and the numbers that screens sort by."""

    __tablename__ = "autotune_trial"
    __table_args__ = (
        UniqueConstraint("run_id", "number"),
        Index(None, "run_id", "status"),
        Index(None, "run_id", "accuracy_key"),
        Index(None, "run_id", "score"),
        Index(
            "ix_autotune_trial_front",
            "run_id",
            sqlite_where=text("on_front"),
            postgresql_where=text("on_front"),
        ),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[int] = mapped_column(ForeignKey(RunRow.id, ondelete="CASCADE"))
    number: Mapped[int]
    config: Mapped[str] = mapped_column(Text)
    fingerprint: Mapped[str] = mapped_column(String(12))
    accuracy_key: Mapped[str] = mapped_column(String(12))
    label: Mapped[str] = mapped_column(Text)
    origin: Mapped[str] = mapped_column(String(16))
    status: Mapped[str] = mapped_column(String(16))
    started: Mapped[float]
    finished: Mapped[float | None]
    limit_bytes: Mapped[int] = mapped_column(BigInteger)
    rehearsed_bytes: Mapped[int | None] = mapped_column(BigInteger)
    feasible: Mapped[bool]
    on_front: Mapped[bool]
    score: Mapped[float | None]
    stderr: Mapped[float | None]
    seconds: Mapped[float | None]
    peak_bytes: Mapped[int | None] = mapped_column(BigInteger)
    footprint_bytes: Mapped[int | None] = mapped_column(BigInteger)
    step_seconds: Mapped[float | None]
    throughput: Mapped[float | None]
    steps: Mapped[int | None]
    parameters: Mapped[int | None] = mapped_column(BigInteger)
    trained_parameters: Mapped[int | None] = mapped_column(BigInteger)
    failure: Mapped[str | None] = mapped_column(Text)
    phase: Mapped[str | None] = mapped_column(String(16))
    step: Mapped[int | None]
    needed_bytes: Mapped[int | None] = mapped_column(BigInteger)
    signal: Mapped[str | None] = mapped_column(String(16))
    error: Mapped[str | None] = mapped_column(Text)
    traceback: Mapped[str | None] = mapped_column(Text)
    outcome: Mapped[str | None] = mapped_column(Text)


class ScoreRow(Base):
    """A metric of a trial; the value is null where it is not a number."""

    __tablename__ = "autotune_score"

    trial_id: Mapped[int] = mapped_column(
        ForeignKey(TrialRow.id, ondelete="CASCADE"), primary_key=True
    )
    metric: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[float | None]
    stderr: Mapped[float | None]
    n: Mapped[int] = mapped_column(BigInteger)


class RungRow(Base):
    """A metric of a trial at a rung where it paused, after `step` of `steps`."""

    __tablename__ = "autotune_rung"

    trial_id: Mapped[int] = mapped_column(
        ForeignKey(TrialRow.id, ondelete="CASCADE"), primary_key=True
    )
    step: Mapped[int] = mapped_column(primary_key=True)
    metric: Mapped[str] = mapped_column(primary_key=True)
    steps: Mapped[int]
    share: Mapped[float]
    value: Mapped[float | None]
    stderr: Mapped[float | None]
    seconds: Mapped[float]


class RepeatRow(Base):
    """A trial once more with another seed.

    The score in the trial's row is then the mean; its outcome and `ScoreRow` stay its first one's.
    """

    __tablename__ = "autotune_repeat"

    trial_id: Mapped[int] = mapped_column(
        ForeignKey(TrialRow.id, ondelete="CASCADE"), primary_key=True
    )
    seed: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    status: Mapped[str] = mapped_column(String(16))
    started: Mapped[float]
    seconds: Mapped[float]
    score: Mapped[float | None]
    stderr: Mapped[float | None]
    peak_bytes: Mapped[int] = mapped_column(BigInteger)
    failure: Mapped[str | None] = mapped_column(Text)
    outcome: Mapped[str] = mapped_column(Text)


class KnobRow(Base):
    """The value of one knob in a trial: a row for every knob of the space, neutral ones too."""

    __tablename__ = "autotune_knob_value"
    __table_args__ = (Index(None, "knob", "value"),)

    trial_id: Mapped[int] = mapped_column(
        ForeignKey(TrialRow.id, ondelete="CASCADE"), primary_key=True
    )
    knob: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str]
    number: Mapped[float | None]
    neutral: Mapped[bool]


class PeakRow(Base):
    """A peak of a trial, by rank, phase and who counted it."""

    __tablename__ = "autotune_measurement"

    trial_id: Mapped[int] = mapped_column(
        ForeignKey(TrialRow.id, ondelete="CASCADE"), primary_key=True
    )
    rank: Mapped[int] = mapped_column(primary_key=True)
    phase: Mapped[str] = mapped_column(String(16), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16), primary_key=True)
    bytes: Mapped[int] = mapped_column(BigInteger)


class AnatomyRow(Base):
    """Bytes of one part of memory at the peak of a steady step."""

    __tablename__ = "autotune_anatomy"

    trial_id: Mapped[int] = mapped_column(
        ForeignKey(TrialRow.id, ondelete="CASCADE"), primary_key=True
    )
    part: Mapped[str] = mapped_column(String(16), primary_key=True)
    bytes: Mapped[int] = mapped_column(BigInteger)


class EnvironmentRow(Base):
    """A fact of the machine or a library version that a run was made with."""

    __tablename__ = "autotune_environment"

    run_id: Mapped[int] = mapped_column(ForeignKey(RunRow.id, ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str] = mapped_column(Text)


class EventRow(Base):
    """Something that a trial or, without a number, the run reported."""

    __tablename__ = "autotune_event"
    __table_args__ = (Index(None, "run_id", "trial"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[int] = mapped_column(ForeignKey(RunRow.id, ondelete="CASCADE"))
    trial: Mapped[int | None]
    time: Mapped[float]
    kind: Mapped[str] = mapped_column(String(32))
    data: Mapped[str] = mapped_column(Text)


class ArtifactRow(Base):
    """A file that a trial or the run left, by its path."""

    __tablename__ = "autotune_artifact"
    __table_args__ = (Index(None, "run_id", "trial"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[int] = mapped_column(ForeignKey(RunRow.id, ondelete="CASCADE"))
    trial: Mapped[int | None]
    kind: Mapped[str] = mapped_column(String(32))
    path: Mapped[str] = mapped_column(Text)
