"""Everything that one proposal of the frontier search is computed from.

Made anew for each proposal from what was told: a process over the knobs that may change accuracy,
the memory of every setting of the others, and the front that both of them say is reached already.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from autotune.search.candidates import Legality, nearest
from autotune.search.features import Columns, Features, rows
from autotune.search.findings import Finding
from autotune.search.improvement import Grid, best_losses, expected_improvement, volume
from autotune.search.memory_model import MemoryModel
from autotune.search.surrogate import Learner, fitted, winsorised

Array = NDArray[np.float64]

MOST_POINTS = 300
"""Trainings that a prediction rests on, at most; fewer once there are thousands."""

FEW_POINTS = 128
MANY = 1000

TOO_NEAR = 0.06
"""A candidate nearer than this to a training would measure its noise again, no more."""

_SIZES = 6.0
"""Range of the logarithm of parameters that counts as the whole range of a knob."""

_REPEAT = 1e-3
_CERTAINTY = 4
"""Power of the probability to fit: 0.9 costs a third of the score, 0.5 nearly all of it."""

_LEANEST = 6
"""Settings of the exact knobs that are kept for each of some configurations."""

_BEYOND = 1.25
"""Memory beyond the greatest that was seen, as a factor, still counts. Where a budget is ample,
cells of all of it would be so wide that lean configurations look alike."""

_ALIKE = 0.02
"""Settings whose memory differs by less, relative, are ordered by time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rated:
    """Candidates with what they promise.

    Attributes:
        codes: `[n, columns]`; of the knobs that do not change accuracy nothing is decided yet.
        peaks: Expected peak bytes of each setting of those, `[n, settings]`; infinite if too much.
        score: Expected growth of the hypervolume, `[n]`; negative if nothing fits.
    """

    codes: Array
    peaks: Array
    score: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Menu:
    """Which knobs decide accuracy, and the settings of the others.

    Attributes:
        lossy: Indices of columns that may change accuracy.
        exact: Indices of the others.
        settings: Of the others, `[settings, len(exact)]`.
    """

    lossy: Columns
    exact: Columns
    settings: Array

    def expanded(self, codes: Array) -> Array:
        """Return each row with every setting, `[n * settings, columns]`."""
        whole = np.repeat(codes, len(self.settings), axis=0)
        whole[:, self.exact] = np.tile(self.settings, (len(codes), 1))
        return whole

    def trimmed(self, memory: MemoryModel, sample: Array) -> Menu:
        """Return the menu without settings that are never among the leanest.

        Args:
            memory: Already taught.
            sample: Some rows of codes, `[n, columns]`.
        """
        if len(self.settings) <= _LEANEST or not len(sample):
            return self
        peaks = memory.peaks.mean(self.expanded(sample)).reshape(len(sample), -1)
        kept = np.unique(np.argsort(peaks, axis=1, kind="stable")[:, :_LEANEST])
        return replace(self, settings=self.settings[kept])


class Scene:
    """What is known before a proposal.

    Args:
        features: Of the space.
        legal: Judges rows of codes.
        menu: Which knobs decide accuracy.
        memory: What configurations need, already taught.
        learner: Keeps the hyper-parameters of losses.
        trained: Trials with a loss, in the order of their numbers, at least one.
        pending: Codes of trials that run, `[m, columns]`.
        timed: Whether the time of a step is an objective too.
    """

    def __init__(
        self,
        *,
        features: Features,
        legal: Legality,
        menu: Menu,
        memory: MemoryModel,
        learner: Learner,
        trained: Sequence[Finding],
        pending: Array,
        timed: bool = False,
    ) -> None:
        self._features = features
        self._legal = legal
        self._menu = menu
        self._memory = memory
        self._timed = timed
        losses = np.array([found.loss for found in trained])
        peaks = np.array([found.peak_bytes for found in trained])
        codes = rows([found.codes for found in trained], len(features.columns))
        capped, self.cap = winsorised(losses)
        chosen = fitted(losses)
        hyper = learner.hyperparameters(self._encode(codes[chosen]), winsorised(losses[chosen])[0])
        kept = representatives(losses, peaks)
        self._learn(learner, codes[kept], capped[kept], hyper, pending)
        self._measured = np.append(peaks[kept], np.full(len(pending), np.inf))
        self._seconds = np.array([trained[i].seconds for i in kept] + [np.inf] * len(pending))
        self._find_front()

    def _encode(self, codes: Array) -> Array:
        """Return what losses are predicted from: the lossy knobs, and the parameters they leave."""
        whole = codes.copy()
        whole[:, self._menu.exact] = self._menu.settings[0]
        model = self._memory.parameters
        sizes = np.clip((model.mean(whole) - model.middle) / _SIZES + 0.5, -0.5, 1.5)
        return np.hstack([self._features.encode(codes, self._menu.lossy), sizes[:, None]])

    def _learn(
        self, learner: Learner, codes: Array, losses: Array, hyper: Array, pending: Array
    ) -> None:
        points = self._encode(codes)
        self.posterior = learner.given(points, losses, hyper)
        self.codes = np.vstack([codes, pending])
        self._points = points
        if len(pending):
            # A trial that runs is believed to end as expected: its neighbours lose their appeal.
            waiting = self._encode(pending)
            believed = self.posterior.mean_at(waiting)
            self._points = np.vstack([points, waiting])
            both = np.append(losses, believed)
            self.posterior = learner.given(self._points, both, hyper)
        self.means = self.posterior.mean_at(self._points)

    def _find_front(self) -> None:
        peaks = self.options(self.codes)
        whole = self._menu.expanded(self.codes).reshape(*peaks.shape, -1)
        for row, option in np.argwhere(np.isfinite(peaks)):
            if not self._legal(whole[row, option]):
                peaks[row, option] = np.inf
        own = np.where(self._measured <= self._memory.peak_limit, self._measured, np.inf)
        self.option_peaks = peaks
        peaks = np.c_[peaks, own]
        limit = min(self._memory.peak_limit, _BEYOND * float(peaks[np.isfinite(peaks)].max()))
        least = min(float(peaks.min()), 0.9 * limit)
        span, seconds = None, self.durations(self.codes)
        if seconds is not None:
            seconds = np.c_[seconds, self._seconds]
            known = seconds[np.isfinite(seconds)]
            span = 0.9 * float(known.min()), 1.1 * float(known.max())
        self.grid = Grid.within((0.95 * least, limit), span)
        reach = self.grid.reach(peaks, seconds)
        self.front = best_losses(reach, self.means, self.cap)
        measured = self.grid.reach(own[:, None], self._seconds[:, None] if self._timed else None)
        self.measured_front = best_losses(measured, self.means, self.cap)

    @property
    def volume(self) -> float:
        """Hypervolume that is reached, in the unit of scores."""
        return volume(self.front, self.cap)

    def leaders(self) -> Array:
        """Return codes of the settings that make the front, `[k, columns]`."""
        on_front = np.isin(np.minimum(self.means, self.cap), self.front)
        return self.codes[on_front] if on_front.any() else self.codes

    def options(self, codes: Array) -> Array:
        """Return expected peak bytes of every setting of the exact knobs, infinite if too much.

        Args:
            codes: `[n, columns]`.

        Returns:
            `[n, settings]`.
        """
        peaks = np.exp(self._memory.peaks.mean(self._menu.expanded(codes)))
        fitting = np.where(peaks <= self._memory.peak_limit, peaks, np.inf)
        return fitting.reshape(len(codes), -1)

    def durations(self, codes: Array) -> Array | None:
        """Return expected seconds of a step in the same shape; None if time does not count."""
        if not self._timed:
            return None
        seconds = np.exp(self._memory.seconds.mean(self._menu.expanded(codes)))
        return np.asarray(seconds.reshape(len(codes), -1))

    def rate(self, codes: Array) -> Rated:
        """Return candidates `[n, columns]` with what each is expected to add to the hypervolume."""
        peaks = self.options(codes)
        least = np.argmin(peaks, axis=1)
        chosen = codes.copy()
        chosen[:, self._menu.exact] = self._menu.settings[least]
        mean, spread = self._memory.peaks.at(chosen)
        fits = ndtr((np.log(self._memory.peak_limit) - mean) / spread) ** _CERTAINTY
        score = self.gain(codes, peaks, self.durations(codes)) * fits
        return Rated(
            codes=codes, peaks=peaks, score=np.where(np.isfinite(peaks).any(1), score, -1.0)
        )

    def gain(self, codes: Array, peaks: Array, seconds: Array | None) -> Array:
        """Return the expected growth of the hypervolume if the peaks are as given, `[n]`."""
        points = self._encode(codes)
        mean, spread = self.posterior.at(points)
        found = expected_improvement(mean, spread, self.grid.reach(peaks, seconds), self.front)
        return np.where(nearest(points, self._points) < TOO_NEAR, _REPEAT * found, found)

    def order(self, code: Array, peaks: Array) -> list[int]:
        """Return the settings of the exact knobs to train one candidate with, best first.

        With two objectives the leanest setting dominates all others of the same accuracy, so that
        training it is its own verification; of nearly equally lean ones the fastest is taken. With
        time as an objective, it is the one that most of the expected growth can be had with.

        Args:
            code: Of the candidate, `[columns]`.
            peaks: Of its settings, `[settings]`.
        """
        possible = np.flatnonzero(np.isfinite(peaks))
        whole = self._menu.expanded(code[None])[possible]
        if self._timed:
            seconds = np.exp(self._memory.seconds.mean(whole))
            gains = self.gain(whole, peaks[possible, None], seconds[:, None])
            return [int(option) for option in possible[np.argsort(-gains, kind="stable")]]
        step = np.floor(np.log(peaks[possible] / peaks.min()) / _ALIKE)
        alike = len(np.unique(step)) < len(step)
        seconds = self._memory.seconds.mean(whole) if alike else step
        return [int(option) for option in possible[np.lexsort((seconds, step))]]

    def unverified(self) -> tuple[Array, Array]:
        """Return what every claim would add to the measured front, with codes of the claims.

        A claim is a trained accuracy with another setting of the exact knobs.

        Returns:
            Growth of the measured hypervolume as a share of the reached one, `[claims]`, and
            `[claims, columns]`, the most valuable claim first.
        """
        row, option = np.nonzero(np.isfinite(self.option_peaks))
        codes = self.codes[row]
        codes[:, self._menu.exact] = self._menu.settings[option]
        peaks = self.option_peaks[row, option][:, None]
        seconds = None
        if self._timed:
            seconds = np.exp(self._memory.seconds.mean(codes))[:, None]
        better = self.measured_front[None] - self.means[row][:, None]
        gained = np.where(self.grid.reach(peaks, seconds), np.maximum(better, 0.0), 0.0).sum(1)
        order = np.argsort(-gained, kind="stable")
        return gained[order] / max(self.volume, 1e-12), codes[order]


def representatives(losses: Array, peaks: Array) -> NDArray[np.intp]:
    """Return which trainings predictions rest on, in order: all, if there are not too many.

    Else the front, the best third, and others spread over the run.
    """
    count = len(losses)
    most = MOST_POINTS if count <= MANY else FEW_POINTS
    if count <= most:
        return np.arange(count)
    by_peak = np.lexsort((losses, peaks))
    falling = np.minimum.accumulate(losses[by_peak])
    front = by_peak[np.append(True, falling[1:] < falling[:-1])][: most // 3]
    best = np.argsort(losses, kind="stable")[: most // 3]
    spread = np.linspace(0, count - 1, most - len(front) - len(best)).astype(int)
    return np.unique(np.concatenate([front, best, spread]))
