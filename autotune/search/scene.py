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
from autotune.search.improvement import Grid, Mask, best_losses, expected_improvement, volume
from autotune.search.learner import Learner
from autotune.search.memory_model import MemoryModel
from autotune.search.pace import Pace
from autotune.search.surrogate import Posterior, fitted, winsorised

Array = NDArray[np.float64]

MOST_POINTS = 300
"""Trainings that a prediction rests on, at most; fewer once there are thousands."""

FEW_POINTS = 128
MOST_BEFORE = 96
"""Trainings of an earlier run that a prediction rests on, at most."""

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

ALIKE = 0.02
"""Settings whose memory differs by less, relative, are ordered by time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rated:
    """Candidates with what they promise.

    Attributes:
        codes: `[n, columns]`; of the knobs that do not change accuracy nothing is decided yet.
        peaks: Expected peak bytes of each setting of those, `[n, settings]`; infinite if too much.
        promise: Expected growth of the hypervolume, `[n]`.
        score: The same by what it costs, if time is short, `[n]`; negative if nothing fits.
    """

    codes: Array
    peaks: Array
    promise: Array
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

    def trimmed(self, memory: MemoryModel, sample: Array, pace: Pace | None = None) -> Menu:
        """Return the menu without settings that are never among the leanest.

        Args:
            memory: Already taught.
            sample: Some rows of codes, `[n, columns]`.
            pace: If given, settings stay that are the fastest for what they need.
        """
        if len(self.settings) <= _LEANEST or not len(sample):
            return self
        whole = self.expanded(sample)
        peaks = memory.peaks.mean(whole).reshape(len(sample), -1)
        keep = np.zeros(len(self.settings), dtype=bool)
        keep[np.argsort(peaks, axis=1, kind="stable")[:, :_LEANEST]] = True
        if pace is not None:
            seconds = pace.seconds(whole).reshape(len(sample), -1)
            order = np.argsort(peaks, axis=1, kind="stable")
            ordered = np.take_along_axis(seconds, order, 1)
            fastest = ordered <= np.minimum.accumulate(ordered, axis=1)
            keep[order[fastest]] = True
        return replace(self, settings=self.settings[keep])


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
        earlier: Trials with a loss of an earlier run, whose losses are evidence with a discrepancy.
        pace: Says how long trials take, if time is short: settings of the exact knobs are then
            trained that are fast, and lean ones are claimed.
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
        earlier: Sequence[Finding] = (),
        pace: Pace | None = None,
    ) -> None:
        self._features = features
        self._legal = legal
        self._menu = menu
        self._memory = memory
        self._timed = timed
        self._pace = pace
        losses = np.array([found.loss for found in trained])
        peaks = np.array([found.peak_bytes for found in trained])
        capped, self.cap = winsorised(losses)
        kept, chosen = representatives(losses, peaks), fitted(losses)
        codes = self._codes([trained[i] for i in kept])
        self._before = self._of_earlier(earlier, codes, losses[kept])
        hyper = self._hyperparameters(
            learner, self._codes([trained[i] for i in chosen]), winsorised(losses[chosen])[0]
        )
        self._learn(learner, codes, capped[kept], hyper, pending)
        self._measured = np.append(peaks[kept], np.full(len(pending), np.inf))
        self._seconds = np.array([trained[i].seconds for i in kept] + [np.inf] * len(pending))
        self._find_front()

    def _codes(self, findings: Sequence[Finding]) -> Array:
        return rows([found.codes for found in findings], len(self._features.columns))

    def _encode(self, codes: Array) -> Array:
        """Return what losses are predicted from: the lossy knobs, and the parameters they leave."""
        return encoded(self._features, self._menu, self._memory, codes)

    def _of_earlier(
        self, earlier: Sequence[Finding], codes: Array, losses: Array
    ) -> tuple[Array, Array]:
        """Return points and losses of an earlier run, shifted to where this run's are.

        By how much is told by configurations that both have tried, such as the baseline.
        """
        if not earlier:
            return np.empty((0, self._encode(codes).shape[1])), np.empty(0)
        there = np.array([found.loss for found in earlier])
        peaks = np.array([found.peak_bytes for found in earlier])
        kept = representatives(there, peaks, MOST_BEFORE)
        points = self._encode(self._codes([earlier[i] for i in kept]))
        there = winsorised(there[kept])[0]
        apart = np.abs(self._encode(codes)[:, None, :] - points[None, :, :]).max(2)
        near = apart.min(1) < TOO_NEAR
        shifts = losses[near] - there[apart.argmin(1)[near]]
        return points, there + (float(np.median(shifts)) if len(shifts) else 0.0)

    def _hyperparameters(self, learner: Learner, codes: Array, losses: Array) -> Array:
        before, there = self._before
        points = np.vstack([self._encode(codes), before])
        more = learner.discrepancy(points, len(codes)) if len(before) else None
        return learner.hyperparameters(points, np.append(losses, there), more)

    def _learn(
        self, learner: Learner, codes: Array, losses: Array, hyper: Array, pending: Array
    ) -> None:
        self.codes = np.vstack([codes, pending])
        self._points = self._encode(codes)
        self.posterior = self._given(learner, losses, hyper)
        if len(pending):
            # A trial that runs is believed to end as expected: its neighbours lose their appeal.
            waiting = self._encode(pending)
            believed = self.posterior.mean_at(waiting)
            self._points = np.vstack([self._points, waiting])
            self.posterior = self._given(learner, np.append(losses, believed), hyper)
        self.means = self.posterior.mean_at(self._points)

    def _given(self, learner: Learner, losses: Array, hyper: Array) -> Posterior:
        before, there = self._before
        if not len(before):
            return learner.given(self._points, losses, hyper)
        points = np.vstack([self._points, before])
        more = learner.discrepancy(points, len(losses))
        return learner.given(points, np.append(losses, there), hyper, more)

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
    def timed(self) -> bool:
        """Whether the time of a step is an objective too."""
        return self._timed

    @property
    def hurried(self) -> bool:
        """Whether fast settings of the exact knobs are trained, and lean ones claimed."""
        return self._pace is not None

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

    def own_durations(self, codes: Array) -> Array | None:
        """Return expected seconds of a step, `[n, 1]`; None if time does not count."""
        return np.exp(self._memory.seconds.mean(codes))[:, None] if self._timed else None

    def rate(self, codes: Array) -> Rated:
        """Return candidates `[n, columns]` with what each is expected to add to the hypervolume."""
        peaks = self.options(codes)
        least = np.argmin(peaks, axis=1)
        chosen = codes.copy()
        chosen[:, self._menu.exact] = self._menu.settings[least]
        mean, spread = self._memory.peaks.at(chosen)
        fits = ndtr((np.log(self._memory.peak_limit) - mean) / spread) ** _CERTAINTY
        promise = self.gain(codes, peaks, self.durations(codes)) * fits
        score = np.where(np.isfinite(peaks).any(1), promise / self.costs(codes), -1.0)
        return Rated(codes=codes, peaks=peaks, promise=promise, score=score)

    def promise(self, code: Array, peak: float) -> float:
        """Return what one candidate, `[columns]`, promises if its memory is known."""
        return float(self.gain(code[None], np.array([[peak]]), self.own_durations(code[None]))[0])

    def costs(self, codes: Array) -> Array:
        """Return what the score of each candidate is divided by, `[n]`: 1 if time is not short.

        It is the time that its fastest setting takes: what is gained by the second counts.
        """
        if self._pace is None:
            return np.ones(len(codes))
        seconds = self._pace.seconds(self._menu.expanded(codes))
        return np.asarray(seconds.reshape(len(codes), -1).min(1))

    def gain(self, codes: Array, peaks: Array, seconds: Array | None) -> Array:
        """Return the expected growth of the hypervolume if the peaks are as given, `[n]`."""
        points = self._encode(codes)
        mean, spread = self.posterior.at(points)
        found = expected_improvement(mean, spread, self.grid.reach(peaks, seconds), self.front)
        return np.where(nearest(points, self._points) < TOO_NEAR, _REPEAT * found, found)

    def order(self, code: Array, peaks: Array) -> list[int]:
        """Return the settings of the exact knobs to train one candidate with, best first.

        With two objectives the leanest setting dominates all others of the same accuracy, so that
        training it is its own verification; of nearly equally lean ones the fastest is taken. If
        time is short, the fastest that fits is trained, and lean ones are verified for those few
        candidates that turn out to be good. With time as an objective, it is the one that most of
        the expected growth can be had with.

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
        if self._pace is not None:
            mean, spread = self._memory.peaks.at(whole)
            risky = mean + spread > np.log(self._memory.peak_limit)
            keys = np.where(risky, peaks[possible], self._pace.seconds(whole)), risky
            return [int(option) for option in possible[np.lexsort(keys)]]
        step = np.floor(np.log(peaks[possible] / peaks.min()) / ALIKE)
        alike = len(np.unique(step)) < len(step)
        seconds = self._memory.seconds.mean(whole) if alike else step
        return [int(option) for option in possible[np.lexsort((seconds, step))]]

    def claims(self) -> tuple[Array, Array, Mask]:
        """Return every claim: a trained accuracy with another setting of the exact knobs.

        Returns:
            Codes `[claims, columns]`, expected losses `[claims]`, and the cells that each can be
            had in, `[claims, cells]`.
        """
        row, option = np.nonzero(np.isfinite(self.option_peaks))
        codes = self.codes[row]
        codes[:, self._menu.exact] = self._menu.settings[option]
        peaks = self.option_peaks[row, option][:, None]
        return codes, self.means[row], self.grid.reach(peaks, self.own_durations(codes))


def encoded(features: Features, menu: Menu, memory: MemoryModel, codes: Array) -> Array:
    """Return what losses are predicted from: the lossy knobs, and the parameters they leave.

    Args:
        features: Of the space.
        menu: Which knobs decide accuracy.
        memory: Already taught.
        codes: `[n, columns]`.
    """
    whole = codes.copy()
    whole[:, menu.exact] = menu.settings[0]
    model = memory.parameters
    sizes = np.clip((model.mean(whole) - model.middle) / _SIZES + 0.5, -0.5, 1.5)
    return np.hstack([features.encode(codes, menu.lossy), sizes[:, None]])


def representatives(losses: Array, peaks: Array, most: int = 0) -> NDArray[np.intp]:
    """Return which trainings predictions rest on, in order: all, if there are not too many.

    Else the front, the best third, and others spread over the run.

    Args:
        losses: Of the trainings, `[n]`.
        peaks: Their peak bytes, `[n]`.
        most: How many are returned, at most; 0 for what suits their number.
    """
    count = len(losses)
    most = most or (MOST_POINTS if count <= MANY else FEW_POINTS)
    if count <= most:
        return np.arange(count)
    by_peak = np.lexsort((losses, peaks))
    falling = np.minimum.accumulate(losses[by_peak])
    front = by_peak[np.append(True, falling[1:] < falling[:-1])][: most // 3]
    best = np.argsort(losses, kind="stable")[: most // 3]
    spread = np.linspace(0, count - 1, most - len(front) - len(best)).astype(int)
    return np.unique(np.concatenate([front, best, spread]))
