"""A trial as the loop, the store and the screens hand it to each other."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from autotune.core.config import Config
from autotune.core.outcome import Completed, Outcome, Refused, Score
from autotune.core.workload import Metric


class Origin(enum.StrEnum):
    """Who proposed a configuration."""

    BASELINE = "baseline"
    SMALLEST = "smallest"
    SAMPLER = "sampler"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRecord:
    """One trial of a run.

    Attributes:
        number: From 0, in the order of proposal.
        config: What was tried.
        origin: Who proposed it.
        started: Unix time at which it was submitted.
        outcome: How it ended; None while it runs, and for a trial that an interrupted run left.
        limit_bytes: The limit that its footprint was held against.
        rehearsed_bytes: Peak that its rehearsal counted; 0 if it was not rehearsed.
        on_front: Whether no feasible trial of the run is better in both accuracy and memory.
    """

    number: int
    config: Config
    origin: Origin = Origin.SAMPLER
    started: float = 0.0
    outcome: Outcome | None = None
    limit_bytes: int = 0
    rehearsed_bytes: int = 0
    on_front: bool = False

    @property
    def refused(self) -> bool:
        """Whether it was refused before it started, and so cost no trial."""
        return isinstance(self.outcome, Refused)

    @property
    def feasible(self) -> bool:
        """Whether it completed within the limit."""
        return (
            isinstance(self.outcome, Completed)
            and self.outcome.measurement.footprint_bytes <= self.limit_bytes
        )

    def score(self, metric: Metric) -> Score | None:
        """Return the score for a metric, or None if the trial has none."""
        if not isinstance(self.outcome, Completed):
            return None
        return self.outcome.scores.get(metric.name)

    def point(self, metric: Metric) -> tuple[float, float] | None:
        """Return `(loss, peak bytes)`, both to be minimised, for a feasible trial; else None."""
        score = self.score(metric)
        if score is None or not self.feasible or self.outcome is None:
            return None
        return metric.loss(score.value), float(self.outcome.measurement.peak_bytes)


def finished(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Return the trials that have an outcome, in order."""
    return [record for record in records if record.outcome is not None]
