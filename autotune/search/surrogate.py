"""A Gaussian process for a dozen to some hundred trainings, in numpy and scipy alone.

The kernel is the sum of two: a product over knobs, a Matern 5/2 with a lengthscale for each knob,
which can follow interactions; and a second part that adds up what each knob does alone, which is
what ten trainings can tell already. That second part is a sum of Matern kernels that share the
lengthscales, or, for logarithms of memory and time, a linear function of the knobs.

Hyper-parameters are the most likely ones under the prior (L-BFGS with the analytic gradient), the
constant mean is its generalised least squares estimate. Targets are standardised inside. Nothing
is random and nothing is remembered from one fit to the next: the same points give the same process.

References:
    Rasmussen and Williams 2006, chapters 2 and 5; Duvenaud et al. 2011, arXiv:1112.4394 (additive
    kernels); Hvarfner et al. 2024, arXiv:2402.02229 (lengthscale priors that grow with dimension).
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, solve_triangular
from scipy.optimize import minimize

Array = NDArray[np.float64]
Floats = NDArray[np.floating]

JITTER = 1e-6
"""Added to the diagonal, in units of the targets' variance."""

MOST_FITTED = 128
"""Points that hyper-parameters are fitted to, at most: fitting is cubic in them."""

_ROOT5 = math.sqrt(5.0)
_WIDTH = 4.0
"""Hyper-parameters stay within this many standard deviations of their prior."""


class Alone(enum.Enum):
    """What the part of the kernel is that adds up knobs."""

    MATERN = enum.auto()
    LINEAR = enum.auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Prior:
    """Normal priors of logarithmic hyper-parameters, each a mean and a standard deviation.

    Attributes:
        length: Of a lengthscale, on top of half the logarithm of the number of knobs.
        product: Of the variance of the product kernel.
        alone: Of the variance of the part that adds up knobs.
        noise: Of the variance of the noise.
        kind: What that part is.
    """

    length: tuple[float, float] = (0.0, 1.0)
    product: tuple[float, float] = (-1.0, 0.7)
    alone: tuple[float, float] = (0.0, 0.7)
    noise: tuple[float, float] = (-4.0, 1.5)
    kind: Alone = Alone.MATERN


class Surrogate:
    """A Gaussian process over points whose columns belong to knobs.

    Args:
        groups: For each column the index of its knob, from 0 without gaps; ascending.
        prior: What is expected of the hyper-parameters.

    Attributes:
        expected: The middle of that.
    """

    def __init__(self, groups: NDArray[np.intp], prior: Prior | None = None) -> None:
        self._groups = groups
        self._prior = prior or Prior()
        knobs = int(groups[-1]) + 1
        length, spread = self._prior.length
        rest = (self._prior.product, self._prior.alone, self._prior.noise)
        self._knobs = knobs
        self.expected = np.array(
            [length + 0.5 * math.log(knobs)] * knobs + [mean for mean, _ in rest]
        )
        self._spread = np.array([spread] * knobs + [sd for _, sd in rest])

    def hyperparameters(
        self,
        points: Array,
        targets: Array,
        iterations: int = 40,
        discrepancy: Array | None = None,
    ) -> Array:
        """Return the most likely hyper-parameters: log lengthscales, three log variances.

        Args:
            points: `[n, columns]`, at least two.
            targets: `[n]`.
            iterations: Of L-BFGS, at most.
            discrepancy: Covariance of what else some targets differ by, `[n, n]`; None for none.
        """
        squares = self._squares(points)
        scaled = _standardised(targets)[0]
        bounds = list(
            zip(
                self.expected - _WIDTH * self._spread,
                self.expected + _WIDTH * self._spread,
                strict=True,
            )
        )
        more = 0.0 if discrepancy is None else discrepancy
        found = minimize(
            lambda at: self._objective(at, points, squares, scaled, more),
            self.expected,
            jac=True,
            method="L-BFGS-B",
            bounds=bounds,
            options={"maxiter": iterations},
        )
        return np.asarray(found.x, dtype=float)

    def objective(self, at: Array, points: Array, targets: Array) -> tuple[float, Array]:
        """Return minus the log posterior of hyper-parameters, up to a constant, and its gradient.

        Args:
            at: `[knobs + 3]`.
            points: `[n, columns]`.
            targets: `[n]`.
        """
        return self._objective(at, points, self._squares(points), _standardised(targets)[0])

    def given(
        self, points: Array, targets: Array, hyper: Array, discrepancy: Array | None = None
    ) -> Posterior:
        """Return the process given what was seen.

        Args:
            points: `[n, columns]`, at least one.
            targets: `[n]`.
            hyper: As `hyperparameters` returns them.
            discrepancy: Covariance of what else some targets differ by, `[n, n]`; None for none.
        """
        scaled, middle, spread = _standardised(targets)
        covariance = self.covariance(points, points, hyper)
        if discrepancy is not None:
            covariance += discrepancy
        root = np.linalg.cholesky(covariance + np.diag(self._noise(points, hyper)))
        ones = cho_solve((root, True), np.ones(len(points)))
        mean = float(ones @ scaled / ones.sum())
        return Posterior(
            surrogate=self,
            points=points,
            hyper=hyper,
            root=np.asarray(root, dtype=float),
            weights=cho_solve((root, True), scaled - mean),
            mean=mean,
            middle=middle,
            spread=spread,
        )

    def _noise(self, points: Array, hyper: Array) -> Array:
        """Return the variance of what is seen at each point, `[n]`."""
        return np.full(len(points), math.exp(hyper[-1]) + JITTER)

    def covariance(self, a: Floats, b: Floats, hyper: Floats) -> Array:
        """Return the kernel between points `[n, columns]` and `[m, columns]`, as `[n, m]`."""
        inverse = np.exp(-hyper[: self._knobs])
        product, alone = np.exp(hyper[self._knobs : -1])
        by_column = inverse[self._groups]
        left, right = a * by_column, b * by_column
        squared = (left**2).sum(1)[:, None] + (right**2).sum(1)[None] - 2.0 * left @ right.T
        total = product * _matern(np.maximum(squared, 0.0))
        if self._prior.kind is Alone.LINEAR:
            return np.asarray(total + alone / self._knobs * (_centred(a) @ _centred(b).T))
        for knob in range(self._knobs):
            columns = self._groups == knob
            apart = np.zeros_like(total)
            for column in np.flatnonzero(columns):
                apart += (left[:, column, None] - right[None, :, column]) ** 2
            total += alone / self._knobs * _matern(apart * self._knobs)
        return np.asarray(total)

    def variance(self, points: Array, hyper: Array) -> Array:
        """Return the kernel of each point with itself, `[n]`."""
        product, alone = np.exp(hyper[self._knobs : -1])
        if self._prior.kind is Alone.LINEAR:
            return np.asarray(product + alone / self._knobs * (_centred(points) ** 2).sum(1))
        return np.full(len(points), product + alone)

    def _squares(self, points: Array) -> Array:
        """Return squared distances by knob, `[knobs, n, n]`."""
        apart = (points[:, None, :] - points[None, :, :]) ** 2
        starts = np.searchsorted(self._groups, np.arange(self._knobs))
        return np.ascontiguousarray(np.moveaxis(np.add.reduceat(apart, starts, axis=2), 2, 0))

    def _objective(
        self, at: Array, points: Array, squares: Array, scaled: Array, more: Array | float = 0.0
    ) -> tuple[float, Array]:
        kernel, slopes = self._with_slopes(at, points, squares)
        kernel += more
        noise = math.exp(at[-1])
        try:
            root = np.linalg.cholesky(kernel + (noise + JITTER) * np.eye(len(scaled)))
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
        gradient[:-1] = 0.5 * np.tensordot(slopes, sensitivity, 2)
        gradient[-1] = 0.5 * noise * np.trace(sensitivity)
        return float(value), gradient + away / self._spread

    def _with_slopes(self, at: Array, points: Array, squares: Array) -> tuple[Array, Array]:
        """Return the kernel and its derivatives by all hyper-parameters but the noise."""
        knobs = self._knobs
        inverse = np.exp(-2.0 * at[:knobs])
        product, alone = np.exp(at[knobs:-1])
        scaled = squares * inverse[:, None, None]
        joint, fall = _matern_with_slope(scaled.sum(0))
        slopes = np.empty((knobs + 2, *joint.shape))
        slopes[:knobs] = scaled * (product * fall)
        slopes[knobs] = product * joint
        if self._prior.kind is Alone.LINEAR:
            slopes[knobs + 1] = alone / knobs * (_centred(points) @ _centred(points).T)
        else:
            scaled *= knobs
            each, falls = _matern_with_slope(scaled)
            slopes[:knobs] += alone / knobs * falls * scaled
            slopes[knobs + 1] = alone / knobs * each.sum(0)
        return slopes[knobs] + slopes[knobs + 1], slopes


@dataclass(frozen=True, slots=True, kw_only=True)
class Posterior:
    """A Gaussian process given what was seen; `Surrogate.given` makes it."""

    surrogate: Surrogate
    points: Array
    hyper: Array
    root: Array
    weights: Array
    mean: float
    middle: float
    spread: float

    def mean_at(self, points: Array) -> Array:
        """Return the expectation at points `[m, columns]`, `[m]`."""
        cross = self.surrogate.covariance(points, self.points, self.hyper)
        return np.asarray((self.mean + cross @ self.weights) * self.spread + self.middle)

    def rough_mean_at(self, points: Array) -> Array:
        """Return the same in single precision, for thousands of points."""
        few = (part.astype(np.float32) for part in (points, self.points, self.hyper))
        cross = self.surrogate.covariance(*few)
        found = cross @ self.weights.astype(np.float32)
        return np.asarray((self.mean + found) * self.spread + self.middle, dtype=float)

    def at(self, points: Array) -> tuple[Array, Array]:
        """Return expectation and standard deviation at points, without noise, `[m]` each."""
        cross = self.surrogate.covariance(points, self.points, self.hyper)
        mean = (self.mean + cross @ self.weights) * self.spread + self.middle
        known = solve_triangular(self.root, cross.T, lower=True)
        left = self.surrogate.variance(points, self.hyper) - (known**2).sum(0)
        return np.asarray(mean), np.asarray(np.sqrt(np.maximum(left, 1e-9)) * self.spread)

    @property
    def noise(self) -> float:
        """Standard deviation of the noise, in the unit of the targets."""
        return math.exp(0.5 * float(self.hyper[-1])) * self.spread


def winsorised(losses: Array, slope: float = 0.25) -> tuple[Array, float]:
    """Pull in losses that are far worse than the median, so that they do not shape the rest.

    A diverged training says that its neighbourhood is bad, not how flat the good region is. Beyond
    the cap, as far above the median as the best is below it, a loss counts by `slope`.

    Args:
        losses: `[n]`, at least one.
        slope: What is left of a difference beyond the cap.

    Returns:
        The losses, and the cap.
    """
    best, middle = float(losses.min()), float(np.median(losses))
    cap = 2.0 * middle - best + 1e-6
    beyond = np.minimum(losses, cap + 4.0 * (cap - best)) - cap
    return np.where(losses > cap, cap + slope * beyond, losses), cap


def fitted(targets: Array) -> NDArray[np.intp]:
    """Return the indices of the points that hyper-parameters are fitted to.

    Those are the first `fitted_count`; of more than `MOST_FITTED`, some spread over the order and
    those with the lowest targets.

    Args:
        targets: `[n]`, in an order that stays the same as more are added.
    """
    first = targets[: fitted_count(len(targets))]
    if len(first) <= MOST_FITTED:
        return np.arange(len(first))
    lowest = np.argsort(first, kind="stable")[: MOST_FITTED // 2]
    return np.union1d(lowest, np.linspace(0, len(first) - 1, MOST_FITTED // 2).astype(int))


def fitted_count(count: int) -> int:
    """Return how many of `count` points hyper-parameters may be fitted to.

    They are fitted anew with every point up to 32, with every second one up to 64, and so on, so
    that fitting takes a share of the time that does not grow.
    """
    step = 1 << max(0, (count // 16).bit_length() - 1)
    return count - count % step


def _standardised(targets: Array) -> tuple[Array, float, float]:
    middle, spread = float(targets.mean()), max(float(targets.std()), 1e-9)
    return (targets - middle) / spread, middle, spread


def _centred(points: Floats) -> Floats:
    return 2.0 * points - 1.0


def _matern(squared: Floats) -> Floats:
    """Return Matern 5/2 of squared scaled distances."""
    root = _ROOT5 * np.sqrt(squared)
    return (1.0 + root + root * root / 3.0) * np.exp(-root)


def _matern_with_slope(squared: Array) -> tuple[Array, Array]:
    """Return Matern 5/2, and minus twice its derivative by the squared distance."""
    root = _ROOT5 * np.sqrt(squared)
    fall = np.exp(-root)
    return (1.0 + root + root * root / 3.0) * fall, 5.0 / 3.0 * (1.0 + root) * fall
