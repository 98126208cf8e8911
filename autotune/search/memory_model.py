"""What configurations need, learned from what was measured, rehearsed and run out of memory.

The logarithm of memory is close to a sum over knobs, with interactions that a few dozen trainings
show; a Gaussian process of that form predicts it with an uncertainty. Before anything was measured
a configuration is expected to need less the nearer its knobs are to their leanest values, which the
baseline and the smallest configuration then turn into bytes. Seconds of a step and the number of
parameters are learned alike.

What counts is kept apart: the search minimises the repeatable peak, and the budget is held against
the footprint, which is a line of the peak (`memory/calibrate.py`). Both ways are offered here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from autotune.memory.calibrate import Calibration
from autotune.search.features import Features, rows
from autotune.search.findings import Finding
from autotune.search.learner import Learner
from autotune.search.surrogate import Alone, Posterior, Prior, fitted, fitted_count

Array = NDArray[np.float64]
Bounds = NDArray[np.bool_]

MOST_POINTS, FEW_POINTS = 192, 96
"""Configurations that a prediction rests on, at most; fewer where there are `MANY`."""

MANY = 400

PRIOR = Prior(
    length=(0.5, 1.0), product=(-2.0, 1.0), alone=(1.0, 1.5), noise=(-7.0, 2.0), kind=Alone.LINEAR
)
"""Memory repeats itself to a per cent, and is mostly a product of what each knob does."""

_UNKNOWN_SPREAD = 1.0
_UNKNOWN_SLOPE = 2.5


class LogModel:
    """Predicts the logarithm of a positive quantity over all knobs of a space.

    Args:
        features: Of the space.
        fitted: Whether hyper-parameters are fitted; else they are as expected beforehand.
    """

    def __init__(self, features: Features, *, fitted: bool) -> None:
        groups = features.groups(features.everything)
        self._features = features
        self._fitted = fitted
        self._learner = Learner(np.append(groups, len(features.columns)), PRIOR)
        self._posterior: Posterior | None = None
        self._default = 0.0

    def learn(self, codes: Array, amounts: Array, bounds: Bounds) -> None:
        """Replace everything that was learned before.

        Args:
            codes: `[n, columns]`, in an order that stays the same as more are added.
            amounts: `[n]`, above 0.
            bounds: Which amounts are only the least that is possible.
        """
        most = MOST_POINTS if len(amounts) < MANY else FEW_POINTS
        if len(amounts) > most:
            spread = np.linspace(0, len(amounts) - 1, most).astype(int)
            codes, amounts = codes[spread], amounts[spread]
            bounds = bounds[spread]
        targets = np.log(amounts)
        self._posterior = None
        if len(targets):
            self._default = float(targets.mean())
        if len(targets) < 2 or targets.std() == 0.0:
            return
        points = self._points(codes)
        hyper = self._learner.expected
        if self._fitted:
            chosen = fitted(targets)
            hyper = self._learner.hyperparameters(points[chosen], targets[chosen])
        self._posterior = self._learner.given(points, targets, hyper)
        if not bounds.any():
            return
        # A lower bound that the model expects to be exceeded is no evidence against the model.
        for _ in range(2):
            raised = np.where(bounds, np.maximum(targets, self._posterior.mean_at(points)), targets)
            self._posterior = self._learner.given(points, raised, hyper)

    @property
    def middle(self) -> float:
        """The mean of the logarithms that were learned."""
        return self._default

    def expect(self, default: float) -> None:
        """Say what the quantity is about, for as long as nothing was learned."""
        self._default = math.log(default)

    def mean(self, codes: Array) -> Array:
        """Return expected logarithms, `[n]`."""
        if self._posterior is None:
            return np.asarray(
                self._default - _UNKNOWN_SLOPE * (self._features.leanness(codes) - 0.5)
            )
        return self._posterior.rough_mean_at(self._points(codes))

    def at(self, codes: Array) -> tuple[Array, Array]:
        """Return expected logarithms and their standard deviations, `[n]` each."""
        if self._posterior is None:
            return self.mean(codes), np.full(len(codes), _UNKNOWN_SPREAD)
        return self._posterior.at(self._points(codes))

    def _points(self, codes: Array) -> Array:
        encoded = self._features.encode(codes, self._features.everything)
        return np.hstack([encoded, self._features.leanness(codes)[:, None]])


class MemoryModel:
    """Peak memory, step time and parameters of configurations.

    Args:
        features: Of the space.
        limit_bytes: What a footprint may reach.
        timed: Whether time has to be known well.
    """

    def __init__(self, features: Features, limit_bytes: int, *, timed: bool = False) -> None:
        self.peaks = LogModel(features, fitted=True)
        self.seconds = LogModel(features, fitted=timed)
        self.parameters = LogModel(features, fitted=True)
        self._features = features
        self._limit_bytes = limit_bytes
        self._ratio = 0.0
        self.peak_limit = float(limit_bytes)
        self.peaks.expect(limit_bytes / 2)

    def learn(
        self, findings: Sequence[Finding], rehearsed: Sequence[tuple[Array, int]] = ()
    ) -> None:
        """Replace everything that was learned before.

        Args:
            findings: In the order of their trials' numbers.
            rehearsed: Codes of further configurations, and the peaks that rehearsals counted.
        """
        done = [found for found in findings if found.peak_bytes > 0]
        ratios = [math.log(f.peak_bytes / f.rehearsed_bytes) for f in done if f.rehearsed_bytes]
        self._ratio = float(np.median(ratios)) if ratios else 0.0
        self.peak_limit = self._peak_within([(f.peak_bytes, f.footprint_bytes) for f in done])
        known = [(f.codes, peak, f.bound) for f in findings if (peak := self._peak(f)) > 0]
        known += [(codes, self.peak_of(counted), False) for codes, counted in rehearsed]
        self.peaks.learn(*self._columns(known))
        timed = [(f.codes, f.seconds, False) for f in done if f.seconds > 0]
        sized = [(f.codes, f.parameters, False) for f in done if f.parameters > 0]
        # Losses are predicted from parameters: those may not move with every trial.
        self.parameters.learn(*self._columns(sized[: fitted_count(len(sized))]))
        self.seconds.learn(*self._columns(timed))

    def peak_of(self, rehearsed: float) -> float:
        """Return the peak that a rehearsed one stands for, by what trials have shown."""
        return rehearsed * math.exp(self._ratio)

    def _peak_within(self, pairs: list[tuple[float, float]]) -> float:
        """Return the peak whose footprint is the limit: the line through `pairs`, by bisection."""
        if not pairs:
            return float(self._limit_bytes)
        line = Calibration(pairs)
        low, high = self._limit_bytes * 1e-3, self._limit_bytes * 4.0
        for _ in range(40):
            middle = math.sqrt(low * high)
            fits = line.predict(middle).middle <= self._limit_bytes
            low, high = (middle, high) if fits else (low, middle)
        return low

    def _peak(self, found: Finding) -> float:
        """Return the peak of a finding, or the least that it can be; 0 if it tells nothing."""
        if found.peak_bytes > 0:
            return found.peak_bytes
        if found.rehearsed_bytes > 0:
            return self.peak_of(found.rehearsed_bytes)
        return self.peak_limit * found.over

    def _columns(self, known: Sequence[tuple[Array, float, bool]]) -> tuple[Array, Array, Bounds]:
        return (
            rows([codes for codes, _, _ in known], len(self._features.columns)),
            np.array([amount for _, amount, _ in known], dtype=float),
            np.array([bound for _, _, bound in known], dtype=bool),
        )
