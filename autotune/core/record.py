"""A trial as the loop, the store and the screens hand it to each other."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autotune.core.config import Config
from autotune.core.outcome import Completed, Outcome, Paused, Refused, Rung, Score, Stopped
from autotune.core.seeds import Repetition, mean_scores
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
        paused: Where it had paused, for a trial that goes on and has not ended yet.
        repeats: The same with further seeds, in the order of seeds; `outcome` stays the first.
    """

    number: int
    config: Config
    origin: Origin = Origin.SAMPLER
    started: float = 0.0
    outcome: Outcome | None = None
    limit_bytes: int = 0
    rehearsed_bytes: int = 0
    on_front: bool = False
    paused: Paused | None = None
    repeats: tuple[Repetition, ...] = ()

    @property
    def refused(self) -> bool:
        """Whether it was refused before it started, and so cost no trial."""
        return isinstance(self.outcome, Refused)

    @property
    def rungs(self) -> tuple[Rung, ...]:
        """Where it paused so far, in order; none of a trial that was trained at once."""
        latest = self.paused if self.outcome is None else self.outcome
        return () if latest is None else latest.rungs

    @property
    def trained(self) -> float:
        """Share of a whole training that it has come to; 1 however it ended, if not paused."""
        if self.refused:
            return 0.0
        left = isinstance(self.outcome, Paused | Stopped) and self.rungs
        return self.rungs[-1].share if left else 1.0

    @property
    def feasible(self) -> bool:
        """Whether it completed within the limit."""
        return (
            isinstance(self.outcome, Completed)
            and self.outcome.measurement.footprint_bytes <= self.limit_bytes
        )

    @property
    def scores(self) -> Mapping[str, Score]:
        """Every metric, over seeds the mean; none if the trial did not complete."""
        return mean_scores(self.outcome, self.repeats)

    @property
    def seeds(self) -> int:
        """Number of seeds that its scores are the mean of."""
        ends = (self.outcome, *(again.outcome for again in self.repeats))
        return sum(isinstance(end, Completed) for end in ends) if self.scores else 0

    def score(self, metric: Metric) -> Score | None:
        """Return the score for a metric, over seeds the mean, or None if the trial has none."""
        return self.scores.get(metric.name) if self.repeats else self.first_score(metric)

    def first_score(self, metric: Metric) -> Score | None:
        """Return the score of the first seed, which the search found; None if there is none."""
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
