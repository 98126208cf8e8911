"""What every card is computed from: a run, its front, its picks, and what each knob did."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from autotune.core.knob import Knob
from autotune.core.outcome import Completed, Measurement, Score
from autotune.core.pareto import Picks
from autotune.core.record import TrialRecord
from autotune.core.workload import Metric
from autotune.report.effects import Effect, knob_effects
from autotune.report.intervals import score_error
from autotune.report.text import signed
from autotune.storage.run import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """A run and what is computed from it once.

    Attributes:
        run: The run.
        knobs: Every knob, in order.
        options: What has to be added to a command for it to find the run.
        front: Trials on the front, the least memory first.
        picks: The trials that are worth looking at first.
        effects: What each step of a knob did, the greatest saving first.
    """

    run: Run
    knobs: tuple[Knob, ...]
    options: str
    front: tuple[TrialRecord, ...]
    picks: Picks
    effects: tuple[Effect, ...]

    @classmethod
    def of(cls, run: Run, knobs: Sequence[Knob], options: str = "") -> Findings:
        """Compute what the cards of a run share."""
        return cls(
            run=run,
            knobs=tuple(knobs),
            options=options,
            front=tuple(run.front()),
            picks=run.picks(),
            effects=tuple(knob_effects(run.records, run.metric, knobs)),
        )

    @property
    def metric(self) -> Metric:
        """What is searched for."""
        return self.run.metric

    def command(self, verb: str, number: int | None = None, rest: str = "") -> str:
        """Return a command about the run, or about one trial of it."""
        target = self.run.name if number is None else f"{self.run.name}/{number}"
        return f"autotune {verb} {shlex.quote(target)}{rest}{self.options}"

    def label(self, record: TrialRecord) -> str:
        """Return what a trial changed against the baseline."""
        return record.config.describe(self.knobs)

    def completed(self) -> list[TrialRecord]:
        """Return the trials that have a finite score for the metric."""
        return [record for record in self.run.records if value_of(record, self.metric) is not None]


def score_of(record: TrialRecord, metric: Metric) -> Score:
    """Return the score of a trial that has one."""
    score = record.score(metric)
    assert score is not None
    return score


def value_of(record: TrialRecord, metric: Metric) -> float | None:
    """Return the value of a trial's score; None if it has none, or none that is a number."""
    score = record.score(metric)
    return score.value if score is not None and math.isfinite(score.value) else None


def measured(record: TrialRecord) -> Measurement:
    """Return what a trial that has ended measured."""
    assert record.outcome is not None
    return record.outcome.measurement


def peak_of(record: TrialRecord) -> int:
    """Return the peak of a trial that has ended, in bytes."""
    return measured(record).peak_bytes


def score_difference(new: TrialRecord, old: TrialRecord, metric: Metric) -> tuple[str, bool]:
    """Say how the score of one trial differs from another's.

    Returns:
        The difference with its 95 % interval, and whether the interval excludes zero; it does not
        where there is no standard error.
    """
    a, b = score_of(new, metric), score_of(old, metric)
    difference, error = a.value - b.value, score_error(a, b)
    text = signed(difference, metric.digits)
    if error is None:
        return text, False
    return f"{text} ±{error:.{metric.digits}f}", abs(difference) > error


def is_completed(record: TrialRecord) -> bool:
    """Whether a trial trained and was evaluated to the end."""
    return isinstance(record.outcome, Completed)
