"""What a trial taught, reduced to the numbers that the frontier search computes with."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autotune.core.outcome import Completed, OutOfMemory, Paused, Refused
from autotune.core.record import TrialRecord
from autotune.core.workload import Metric
from autotune.search.features import Columns, Features
from autotune.search.surrogate import fitted_count

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One trial of a configuration inside the space.

    Attributes:
        codes: Of its configuration, `[columns]`.
        loss: To be minimised; not a number if it has no finite score.
        peak_bytes: Measured; 0 if it did not complete.
        footprint_bytes: The same for the footprint.
        seconds: Of a step; 0 if unknown.
        took: Seconds of the whole trial; 0 if unknown.
        parameters: Number of parameters that were left; 0 if unknown.
        rehearsed_bytes: Counted by its rehearsal; 0 if unknown.
        over: How many times its limit it needed, for a trial that was out of memory or refused;
            0 for others.
        bound: Whether `over` is only the least that it needed.
    """

    codes: Array
    loss: float = math.nan
    peak_bytes: float = 0.0
    footprint_bytes: float = 0.0
    seconds: float = 0.0
    took: float = 0.0
    parameters: float = 0.0
    rehearsed_bytes: float = 0.0
    over: float = 0.0
    bound: bool = False

    @property
    def refused(self) -> bool:
        """Whether it was refused before it started, and so cost no trial."""
        return self.over > 0.0 and not self.bound

    @property
    def scored(self) -> bool:
        """Whether it says something about accuracy; being over the limit does not matter."""
        return math.isfinite(self.loss) and self.peak_bytes > 0


def finding_of(
    record: TrialRecord, features: Features, metric: Metric, limit_bytes: int
) -> Finding | None:
    """Return what a record teaches; None for a configuration outside the space.

    Args:
        record: Of a trial that ended or runs.
        features: Of the space.
        metric: What is searched for.
        limit_bytes: The limit of trials whose record has none.
    """
    codes = features.codes(record.config)
    if codes is None:
        return None
    outcome, rehearsed = record.outcome, float(record.rehearsed_bytes)
    if isinstance(outcome, OutOfMemory | Refused):
        # What failed came on top of what else is there: it needs more than the limit, at least.
        over = max(1.01, outcome.needed_bytes / (record.limit_bytes or limit_bytes))
        bound = isinstance(outcome, OutOfMemory)
        return Finding(codes=codes, rehearsed_bytes=rehearsed, over=over, bound=bound)
    if not isinstance(outcome, Completed | Paused):
        return Finding(codes=codes, rehearsed_bytes=rehearsed)
    score = record.score(metric)  # one that paused has none; its memory is known
    return Finding(
        codes=codes,
        loss=math.nan if score is None else metric.loss(score.value),
        peak_bytes=float(outcome.measurement.peak_bytes),
        footprint_bytes=float(outcome.measurement.footprint_bytes),
        seconds=outcome.measurement.step_seconds,
        took=outcome.seconds,
        parameters=float(outcome.measurement.parameters),
        rehearsed_bytes=rehearsed,
    )


class Told:
    """What was told so far, in the order of the trials' numbers, whatever order it came in.

    Attributes:
        all: Every finding.
        trained: Those that say something about accuracy.
    """

    def __init__(self) -> None:
        self.all: list[Finding] = []
        self.trained: list[Finding] = []
        self._numbers: list[int] = []
        self._trained_numbers: list[int] = []

    def add(self, number: int, found: Finding | None) -> None:
        """Learn what a trial taught, in place of what it had before; None teaches nothing."""
        _put(self._numbers, self.all, number, found)
        scored = found if found is not None and found.scored else None
        _put(self._trained_numbers, self.trained, number, scored)


def _put(numbers: list[int], findings: list[Finding], number: int, found: Finding | None) -> None:
    at = bisect_left(numbers, number)
    if at < len(numbers) and numbers[at] == number:
        del numbers[at], findings[at]
    if found is not None:
        numbers.insert(at, number)
        findings.insert(at, found)


def exact_knobs_matter(trained: Sequence[Finding], lossy: Columns) -> bool:
    """Whether trials that differ in exact knobs alone differ clearly in their losses.

    Args:
        trained: Trials with a loss.
        lossy: Indices of the columns that may change accuracy.
    """
    siblings: dict[bytes, list[float]] = {}
    for found in trained:
        siblings.setdefault(found.codes[lossy].tobytes(), []).append(found.loss)
    groups = [losses for losses in siblings.values() if len(losses) > 1]
    freedom = sum(len(losses) - 1 for losses in groups)
    if not freedom:
        return False
    squares = sum(float(np.var(losses)) * len(losses) for losses in groups)
    low, high = np.quantile([found.loss for found in trained], (0.25, 0.75))
    # One pair may differ by chance; several must not.
    bound = (0.15 + 0.2 / freedom) * float(high - low) / 1.35
    return math.sqrt(squares / freedom) > bound


def thinned(findings: Sequence[Finding], most: int = 400) -> list[Finding]:
    """Return findings spread over the run, the same ones for some trials in a row."""
    if len(findings) <= most:
        return list(findings)
    settled = fitted_count(len(findings))
    return [findings[i] for i in np.linspace(0, settled - 1, most).astype(int)]
