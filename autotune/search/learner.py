"""A surrogate whose hyper-parameters are fitted now and then, and that other runs may inform."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from autotune.search.surrogate import Posterior, Prior, Surrogate

Array = NDArray[np.float64]

_SHIFTED, _APART = 1.0, 0.1
"""Variance of what all targets of another run may be shifted by, and share of the expected variance
that each may differ by on its own."""


class Learner:
    """Fits hyper-parameters now and then, and keeps the last ones: they follow from the points.

    Args:
        groups: As for `Surrogate`.
        prior: As for `Surrogate`.
    """

    def __init__(self, groups: NDArray[np.intp], prior: Prior | None = None) -> None:
        self._surrogate = Surrogate(groups, prior)
        self._fitted: tuple[int, Array] | None = None

    @property
    def expected(self) -> Array:
        """The hyper-parameters that are expected before anything was seen."""
        return self._surrogate.expected

    def hyperparameters(
        self, points: Array, targets: Array, discrepancy: Array | None = None
    ) -> Array:
        """Return the most likely hyper-parameters; the last ones, if the points are the same.

        Args:
            points: `[n, columns]`, those of `fitted`.
            targets: `[n]`.
            discrepancy: See `Surrogate.given`.
        """
        more = b"" if discrepancy is None else discrepancy.tobytes()
        key = hash((points.tobytes(), targets.tobytes(), more))
        if self._fitted is None or self._fitted[0] != key:
            found = self._surrogate.hyperparameters(points, targets, discrepancy=discrepancy)
            self._fitted = key, found
        return self._fitted[1]

    def given(
        self, points: Array, targets: Array, hyper: Array, discrepancy: Array | None = None
    ) -> Posterior:
        """Return the process given what was seen; see `Surrogate.given`."""
        return self._surrogate.given(points, targets, hyper, discrepancy)

    def discrepancy(self, points: Array, own: int) -> Array:
        """Return by how much the targets of another run may differ from what this one would have.

        They may all be shifted, and each may differ by what is a function of its point, too.

        Args:
            points: `[n, columns]`: those of this run, then those of the other.
            own: How many are of this run.

        Returns:
            Covariance, `[n, n]`, in units of the targets' variance.
        """
        found = np.zeros((len(points), len(points)))
        others = points[own:]
        apart = self._surrogate.covariance(others, others, self.expected)
        found[own:, own:] = _SHIFTED + _APART * apart
        return found
