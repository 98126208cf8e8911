"""What trainings that paused say about how they would end, without being sure of it.

A loss at a rung is the loss at the end plus a discrepancy: a constant, and a function of the knobs
with the lengthscales of the loss itself but a variance of its own, both scaled by how far the rung
is from the end. Since the discrepancy is correlated from one configuration to its neighbours, any
number of cheap observations leaves the model unsure of what only whole trainings can show: a
process that took the rung as one more input decided after a few ninths of trainings that width does
not help, and never left the small models.

`FidelityLearner` stands in the place of `surrogate.Learner`: it is asked about whole trainings and
adds what it knows of paused ones.

References:
    Kennedy and O'Hagan 2000 (a discrepancy between fidelities); Swersky et al. 2014,
    arXiv:1406.3896 (freezing and thawing).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve

from autotune.search.learner import Learner
from autotune.search.surrogate import (
    JITTER,
    Array,
    Floats,
    Posterior,
    Prior,
    Surrogate,
    winsorised,
)

RATIO = (-1.0, 0.7)
"""Prior of the logarithm of the discrepancy's variance, relative to that of the loss."""

OFFSET = (1.0, 1.0)
"""The same for its constant, relative to the variance of what was seen."""

_EXTRA_NOISE = 0.02
"""Variance that a loss has more at the first rung than at the end, as evaluations waver there."""

MOST_LOW = 160
"""Observations at rungs that a prediction rests on, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LowFidelity:
    """Losses at rungs.

    Attributes:
        points: What they are predicted from, `[n, columns]`.
        losses: To be minimised, `[n]`.
        distance: How far each is from the end, `[n]`: 1 at the first rung, 0 at the end.
    """

    points: Array
    losses: Array
    distance: Array


class FidelitySurrogate(Surrogate):
    """A Gaussian process over points with a last column: the distance from the end.

    Points without that column are at the end. Hyper-parameters are those of `Surrogate`, with two
    more before the noise: logarithms of the discrepancy's ratio and of its constant's variance.
    """

    def __init__(self, groups: NDArray[np.intp], prior: Prior | None = None) -> None:
        super().__init__(groups, prior)
        self._columns = len(groups)
        more = (RATIO, OFFSET)
        self.expected = np.insert(self.expected, -1, [mean for mean, _ in more])
        self._spread = np.insert(self._spread, -1, [spread for _, spread in more])

    def covariance(self, a: Floats, b: Floats, hyper: Floats) -> Array:
        """Return the kernel between points `[n, columns]` and `[m, columns]`, as `[n, m]`."""
        ratio, offset = np.exp(hyper[-3:-1])
        base = super().covariance(self._knobs_of(a), self._knobs_of(b), _base(hyper))
        both = np.outer(self._distance(a), self._distance(b))
        return np.asarray(base * (1.0 + ratio * both) + offset * both)

    def variance(self, points: Array, hyper: Array) -> Array:
        """Return the kernel of each point with itself, `[n]`."""
        ratio, offset = np.exp(hyper[-3:-1])
        squared = self._distance(points) ** 2
        base = super().variance(self._knobs_of(points), _base(hyper))
        return np.asarray(base * (1.0 + ratio * squared) + offset * squared)

    def _knobs_of(self, points: Floats) -> Any:
        return points[:, : self._columns]

    def _distance(self, points: Floats) -> Floats:
        if points.shape[1] == self._columns:
            return np.zeros(len(points))
        return points[:, self._columns]

    def _noise(self, points: Array, hyper: Array) -> Array:
        return np.asarray(math.exp(hyper[-1]) + JITTER + _EXTRA_NOISE * self._distance(points) ** 2)

    def _squares(self, points: Array) -> Array:
        return super()._squares(np.ascontiguousarray(self._knobs_of(points)))

    def _objective(
        self, at: Array, points: Array, squares: Array, scaled: Array, more: Array | float = 0.0
    ) -> tuple[float, Array]:
        ratio, offset = np.exp(at[-3:-1])
        base, slopes = self._with_slopes(_base(at), self._knobs_of(points), squares)
        both = np.outer(self._distance(points), self._distance(points))
        factor = 1.0 + ratio * both
        kernel = base * factor + offset * both + more
        try:
            root = np.linalg.cholesky(kernel + np.diag(self._noise(points, at)))
        except np.linalg.LinAlgError:
            return 1e10, np.zeros_like(at)
        inverse = cho_solve((root, True), np.eye(len(scaled)))
        ones = inverse.sum(0)
        rest = scaled - ones @ scaled / ones.sum()
        weights = inverse @ rest
        away = (at - self.expected) / self._spread
        value = 0.5 * rest @ weights + np.log(np.diag(root)).sum() + 0.5 * away @ away
        sensitivity = inverse - np.outer(weights, weights)
        gradient = np.empty_like(at)
        gradient[:-3] = 0.5 * np.tensordot(slopes, factor * sensitivity, 2)
        gradient[-3] = 0.5 * ratio * float((base * both * sensitivity).sum())
        gradient[-2] = 0.5 * offset * float((both * sensitivity).sum())
        gradient[-1] = 0.5 * math.exp(at[-1]) * float(np.trace(sensitivity))
        return float(value), gradient + away / self._spread


class FidelityLearner(Learner):
    """Fits whole trainings and those at rungs together.

    Args:
        groups: As for `Surrogate`.
        prior: As for `Surrogate`.

    Attributes:
        low: What is known of paused trainings; the search sets it before each proposal.
    """

    def __init__(self, groups: NDArray[np.intp], prior: Prior | None = None) -> None:
        super().__init__(groups, prior)
        self._surrogate = FidelitySurrogate(groups, prior)
        self.low: LowFidelity | None = None

    def hyperparameters(
        self, points: Array, targets: Array, discrepancy: Array | None = None
    ) -> Array:
        """Return the most likely hyper-parameters; see `Learner.hyperparameters`."""
        return super().hyperparameters(*self._with_low(points, targets, discrepancy))

    def given(
        self, points: Array, targets: Array, hyper: Array, discrepancy: Array | None = None
    ) -> Posterior:
        """Return the process given whole trainings and those at rungs."""
        both, losses, more = self._with_low(points, targets, discrepancy)
        return super().given(both, losses, hyper, more)

    def _with_low(
        self, points: Array, targets: Array, discrepancy: Array | None
    ) -> tuple[Array, Array, Array | None]:
        whole = np.hstack([points, np.zeros((len(points), 1))])
        if self.low is None or not len(self.low.losses):
            return whole, targets, discrepancy
        keep = _latest(len(self.low.losses))
        below = np.hstack([self.low.points[keep], self.low.distance[keep, None]])
        if discrepancy is not None:
            discrepancy = np.pad(discrepancy, (0, len(keep)))
        return np.vstack([whole, below]), np.append(targets, self.low.losses[keep]), discrepancy


def by_rung(losses: Sequence[float], distances: Sequence[float]) -> Array:
    """Return losses at rungs, pulled in where they are far worse than others of the same rung."""
    values, apart = np.array(losses, dtype=float), np.array(distances, dtype=float)
    for distance in np.unique(apart):
        here = apart == distance
        values[here] = winsorised(values[here])[0]
    return values


def distance_of(share: float, least: float) -> float:
    """Return how far a rung is from the end: 1 at the lowest, 0 at the end, even in logarithms."""
    return math.log(share) / math.log(least)


def _base(hyper: Floats) -> Any:
    """Return the hyper-parameters of the process at the end, the noise last."""
    return np.append(hyper[:-3], hyper[-1:])


def _latest(count: int) -> NDArray[np.intp]:
    return np.arange(max(0, count - MOST_LOW), count)
