"""From what a rehearsal counts to what a device will show: a line, learned from the study itself.

A trace cannot see everything: the CUDA context, workspaces, heap that `malloc` keeps. What it
misses is close to a fixed amount plus a share of what it counts, so::

    measured = fixed + factor * rehearsed, with an error relative to `rehearsed`

Bayesian linear regression with a weak prior answers from the first trial on: wide at first, and
narrow as measurements come in.

A footprint is the greatest of all peaks, and a rehearsal does not see the one of loading, in which
weights are read, quantised and pruned. It would bend the line, so it has a line of its own, over
four bytes for each parameter, and the footprint is the greater of the two (`Interval.or_more`).

References:
    Gelman et al., Bayesian Data Analysis, chapter 14: normal linear model with conjugate prior;
    Abramowitz and Stegun 26.7.5: quantiles of Student's t.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from autotune.core.units import GIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Prior:
    """What is expected before anything was measured.

    Attributes:
        fixed_bytes: Expected fixed amount.
        fixed_spread: Its standard deviation, in bytes.
        factor: Expected factor.
        factor_spread: Its standard deviation.
        noise: Expected relative error.
        weight: Measurements that the expectation of the error counts for.
    """

    fixed_bytes: float = 16 * 2**20
    fixed_spread: float = 64 * 2**20
    factor: float = 1.0
    factor_spread: float = 0.1
    noise: float = 0.04
    weight: float = 3.0


LOADING = Prior(factor_spread=0.5, noise=0.25)
"""What is expected of loading, over four bytes for each parameter: a quantised model takes less,
and one whose importance is measured takes more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A prediction in bytes: the middle, and ends between which it lies with some probability."""

    low: float
    middle: float
    high: float

    def __contains__(self, amount: float) -> bool:
        return self.low <= amount <= self.high

    def chance_above(self, amount: float, coverage: float = 0.9) -> float:
        """Return the probability of more than an amount.

        Args:
            amount: In bytes.
            coverage: Probability of what lies between the ends.
        """
        if self.low >= self.high:
            return float(self.middle > amount)
        end = self.high if amount > self.middle else self.low
        spread = max(abs(end - self.middle), 1.0) / NormalDist().inv_cdf(0.5 + coverage / 2)
        return 1.0 - NormalDist(self.middle, spread).cdf(amount)

    def or_more(self, other: Interval) -> Interval:
        """Return where the greater of two amounts lies, by the ends of each."""
        return Interval(
            low=max(self.low, other.low),
            middle=max(self.middle, other.middle),
            high=max(self.high, other.high),
        )


class Calibration:
    """Learns from pairs of rehearsed and measured bytes, and predicts.

    Args:
        pairs: `(rehearsed, measured)` in bytes, of trials of one workload on one device; measured
            without the peak of loading.
        prior: What is expected before.
    """

    def __init__(
        self, pairs: Iterable[tuple[float, float]] = (), prior: Prior | None = None
    ) -> None:
        prior = prior or Prior()
        known = [(a, b) for a, b in pairs if a > 0 and b > 0]
        self.count = len(known)
        # Dividing by what was rehearsed makes errors equal in size: y = fixed / x + factor.
        x = np.array([[GIB / a, 1.0] for a, _ in known]).reshape(-1, 2)
        y = np.array([b / a for a, b in known])
        spread = np.array([prior.fixed_spread / GIB, prior.factor_spread])
        before = np.diag((prior.noise / spread) ** 2)
        expected = np.array([prior.fixed_bytes / GIB, prior.factor])
        self._precision = before + x.T @ x
        self._mean = np.linalg.solve(self._precision, before @ expected + x.T @ y)
        self._freedom = prior.weight + self.count
        # Errors of leaving one out: those of the fit itself would be too small for few pairs.
        leverage = np.einsum("ij,ji->i", x, np.linalg.solve(self._precision, x.T))
        misfit = (y - x @ self._mean) / (1.0 - leverage)
        total = prior.weight * prior.noise**2 + misfit @ misfit
        self._noise = math.sqrt(float(total) / self._freedom)

    def predict(self, rehearsed: float, coverage: float = 0.9) -> Interval:
        """Return where a measurement will lie.

        Args:
            rehearsed: Bytes that the rehearsal counted, above 0.
            coverage: Probability that the interval holds the measurement.
        """
        at = np.array([GIB / rehearsed, 1.0])
        middle = float(at @ self._mean)
        doubt = float(at @ np.linalg.solve(self._precision, at))
        width = student_quantile(0.5 + coverage / 2, self._freedom)
        width *= self._noise * math.sqrt(1.0 + doubt)
        return Interval(
            low=max(0.0, (middle - width) * rehearsed),
            middle=middle * rehearsed,
            high=(middle + width) * rehearsed,
        )


def student_quantile(probability: float, freedom: float) -> float:
    """Return a quantile of Student's t, to 1 % from three degrees of freedom on.

    Args:
        probability: Between 0 and 1.
        freedom: Degrees of freedom, at least 3.
    """
    z = NormalDist().inv_cdf(probability)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return float(sum(term / freedom**power for power, term in enumerate(terms)))
