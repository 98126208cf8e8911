"""The same configuration with several seeds: its mean score, and how sure that is.

A score over an evaluation set has two errors. Other examples would have given another score: that
is its own standard error, which further seeds on the same examples do not lower. And another seed
would have trained another model: how far seeds scatter is only known from several of them. The mean
over seeds has both, `sqrt(s² / k + e²)`, with `s` the standard deviation of `k` seeds and `e` the
evaluation's own error. A scatter from few seeds is itself a guess, so that the standard error is
widened as far as Student's t is wider than the normal distribution, in proportion to what the
scatter has in the sum: ±1.96 of it hold the true score 95 times of 100, also for two seeds.

References:
    Student 1908, "The probable error of a mean"; Hill 1970, "Algorithm 396: Student's t-quantiles".
    Cochran and Cox 1950, "Experimental designs", for the quantile of a sum of two variances.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from autotune.core.outcome import Completed, Outcome, Score
from autotune.core.workload import Metric

NORMAL = statistics.NormalDist().inv_cdf(0.975)
"""Standard errors on either side that hold 95 of 100 normal values."""

_STUDENT = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
    *(2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Repetition:
    """A trial once more, with another seed.

    Attributes:
        seed: Of the training.
        started: Unix time at which it was submitted.
        outcome: How it ended. One that did not complete is kept, and counts for no mean.
    """

    seed: int
    started: float
    outcome: Outcome

    def score(self, metric: Metric) -> Score | None:
        """Return the score of this seed alone; None if it did not complete."""
        if not isinstance(self.outcome, Completed):
            return None
        return self.outcome.scores.get(metric.name)


def student(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t distribution with that many degrees of freedom."""
    if freedom < 1:
        raise ValueError(f"a t distribution has at least 1 degree of freedom, but got {freedom}")
    if freedom <= len(_STUDENT):
        return _STUDENT[freedom - 1]
    z = NORMAL
    first = (z**3 + z) / (4 * freedom)
    return z + first + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def mean_score(scores: Sequence[Score]) -> Score:
    """Return the mean of a metric over seeds with its standard error.

    Args:
        scores: One for each seed, at least one.

    Returns:
        The mean. Its standard error is None if it cannot be told, as for a single score.
    """
    if len(scores) == 1:
        return scores[0]
    values = [score.value for score in scores]
    mean = statistics.fmean(values)
    if not all(map(math.isfinite, values)):
        return Score(value=mean, n=scores[0].n)
    seeds = statistics.variance(values) / len(values)
    own = statistics.fmean([(score.stderr or 0.0) ** 2 for score in scores])
    both = seeds + own
    if both == 0.0:
        return Score(value=mean, n=scores[0].n)
    quantile = (seeds * student(len(values) - 1) + own * NORMAL) / both
    return Score(value=mean, stderr=quantile / NORMAL * math.sqrt(both), n=scores[0].n)


def mean_scores(outcome: Outcome | None, repeats: Sequence[Repetition]) -> dict[str, Score]:
    """Return every metric of a trial, as the mean over the seeds that completed.

    Args:
        outcome: How its first training ended.
        repeats: Its further ones.

    Returns:
        None at all for a trial whose first training did not complete.
    """
    if not isinstance(outcome, Completed):
        return {}
    if not repeats:
        return dict(outcome.scores)
    ends = [outcome, *(r.outcome for r in repeats if isinstance(r.outcome, Completed))]
    return {
        name: mean_score([end.scores[name] for end in ends if name in end.scores])
        for name in outcome.scores
    }
