"""How long trials take, learned from those that ended: what a time limit is spent on.

The logarithm of a trial's seconds is taken as a sum over knobs. That is little, and enough: what
has to be known is which settings of the exact knobs are fast, and how many trials the time that is
left is good for. Start, loading and evaluation are in it, as they are in the limit.

Before anything was measured, an exact knob is expected to cost time the leaner it is set: saving
memory by computing the same in another way is paid for with time. Each measurement moves that by
Bayesian linear regression, so that a knob that no two trials differ in stays as expected.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from autotune.search.features import Features, rows
from autotune.search.findings import Finding

Array = NDArray[np.float64]

_EXPECTED = 0.3
"""Logarithm by which the leanest value of an exact knob is expected to take longer."""

_KNOB, _NOISE = 0.5, 0.15
"""Standard deviations: of what a knob does to the logarithm, and of what trials scatter by."""


class Pace:
    """Predicts the seconds of a trial.

    Args:
        features: Of the space.

    Attributes:
        typical: Median seconds of the trials that were learned from; 0 if there are none.
    """

    def __init__(self, features: Features) -> None:
        self._features = features
        self._level = 0.0
        self._weights: Array | None = None
        self.typical = 0.0

    def learn(self, findings: Sequence[Finding]) -> None:
        """Replace everything that was learned before.

        Args:
            findings: Of trials; those without a score or without a duration say nothing.
        """
        timed = [found for found in findings if found.scored and found.took > 0.0]
        self._weights = None
        self.typical = statistics.median(found.took for found in timed) if timed else 0.0
        if not timed:
            return
        codes = rows([found.codes for found in timed], len(self._features.columns))
        rest = np.log([found.took for found in timed]) - self._expected(codes)
        points = self._points(codes)
        centre, level = points.mean(0), float(rest.mean())
        apart = points - centre
        ridge = (_NOISE / _KNOB) ** 2 * np.eye(apart.shape[1])
        self._weights = np.linalg.solve(apart.T @ apart + ridge, apart.T @ (rest - level))
        self._level = level - float(centre @ self._weights)

    def seconds(self, codes: Array) -> Array:
        """Return the expected seconds of trials, `[n]`; in no unit before any was measured.

        Args:
            codes: `[n, columns]`.
        """
        if self._weights is None:
            return np.asarray(np.exp(self._expected(codes)))
        return np.asarray(
            np.exp(self._level + self._expected(codes) + self._points(codes) @ self._weights)
        )

    def _points(self, codes: Array) -> Array:
        return self._features.encode(codes, self._features.everything)

    def _expected(self, codes: Array) -> Array:
        """Return what lean exact knobs are expected to add to the logarithm, `[n]`."""
        columns = self._features.columns
        parts = [columns[i].leanness(codes[:, i]) for i in self._features.exact]
        return np.asarray(_EXPECTED * sum(parts, np.zeros(len(codes))))
