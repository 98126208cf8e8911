"""Expected improvement of a front whose memory is known and whose losses are not.

Memory needs no distribution: it is known before a training. So the expected growth of the
hypervolume is a sum, not an integral over two dimensions. The budget is cut into cells of memory,
or of memory and time; in each cell the front has a best loss so far, and a candidate that can be
trained within the cell improves on it by an expected amount that has a closed form. Exact up to the
width of a cell, without sampling, and for all candidates at once.

References:
    Emmerich et al. 2011 (expected hypervolume improvement); Jones et al. 1998 (expected
    improvement of one loss).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

CELLS = 128
"""Cells of memory with two objectives; `ROUGH` by `ROUGH` of memory and time with three."""

ROUGH = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Cells inside the budget.

    Attributes:
        memory: Upper ends of the cells, ascending, in bytes.
        time: Upper ends of the cells, ascending, in seconds, each the same multiple of the one
            before, since settings differ in time by orders of magnitude; empty with two objectives.
    """

    memory: Array
    time: Array

    @classmethod
    def within(cls, memory: tuple[float, float], time: tuple[float, float] | None = None) -> Grid:
        """Return cells between the least and the most memory, and time if it is an objective."""
        cells = CELLS if time is None else ROUGH
        ends = np.linspace(*memory, cells + 1)[1:]
        if time is None:
            return cls(memory=ends, time=np.empty(0))
        return cls(memory=ends, time=np.geomspace(*time, cells + 1)[1:])

    def reach(self, memory: Array, time: Array | None = None) -> Mask:
        """Return which cells each setting can be trained in by one of its options.

        Args:
            memory: `[n, options]` in bytes, infinite for an option that does not fit.
            time: The same in seconds; None with two objectives.

        Returns:
            `[n, cells]`.
        """
        if time is None or not len(self.time):
            within_memory: Mask = memory.min(1)[:, None] <= self.memory[None]
            return within_memory
        first = np.searchsorted(self.memory, memory)
        fastest = np.full((len(memory), len(self.memory) + 1), np.inf)
        rows = np.repeat(np.arange(len(memory)), memory.shape[1])
        np.minimum.at(fastest, (rows, first.ravel()), time.ravel())
        fastest = np.minimum.accumulate(fastest[:, :-1], axis=1)
        within: Mask = fastest[:, :, None] <= self.time
        return within.reshape(len(memory), -1)


def best_losses(reach: Mask, losses: Array, cap: float) -> Array:
    """Return the best loss of the front in each cell, `[cells]`; `cap` where there is none.

    Args:
        reach: `[n, cells]`, of what was trained.
        losses: `[n]`.
        cap: Losses beyond count for nothing.
    """
    inside = np.where(reach, np.minimum(losses, cap)[:, None], cap)
    return np.asarray(inside.min(0, initial=cap))


def expected_improvement(mean: Array, spread: Array, reach: Mask, front: Array) -> Array:
    """Return the expected growth of the hypervolume, summed over cells.

    Args:
        mean: Expected loss of each candidate, `[n]`.
        spread: Its standard deviation, `[n]`, above 0.
        reach: Cells that each candidate can be trained in, `[n, cells]`.
        front: Best loss of the front in each cell, `[cells]`.

    Returns:
        `[n]`, in units of loss times cells; see `share`.
    """
    levels, level = np.unique(front, return_inverse=True)
    members = np.zeros((len(front), len(levels)), dtype=np.float32)
    members[np.arange(len(front)), level] = 1.0
    counts = reach.astype(np.float32) @ members
    ahead = (levels[None] - mean[:, None]) / spread[:, None]
    density = np.exp(-0.5 * ahead * ahead) / math.sqrt(2.0 * math.pi)
    gain = spread[:, None] * (ahead * ndtr(ahead) + density)
    return np.asarray((counts * gain).sum(1), dtype=float)


def volume(front: Array, cap: float) -> float:
    """Return the hypervolume of a front, in units of loss times cells."""
    return float((cap - front).sum())
