"""Which claims are worth a trial: trained accuracies that are expected to be had leaner.

A claim is printed as predicted until it is run once, so the trials at the end of a search are for
claims, as long as there are any that would add to the front. Where time is short and fast settings
are trained, as late as possible: when the time that is left is what verifying takes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autotune.search.pace import Pace
from autotune.search.scene import Scene

Array = NDArray[np.float64]

WORTH = 0.002
"""Share of the hypervolume that a claim must add for it to be verified by a trial."""

_MOST_PLANNED = 8
_CONSIDERED = 64
"""Claims among which those are chosen that are to be verified, at most: the best ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verifications:
    """Claims to be verified.

    Attributes:
        rows: Codes, `[n, columns]`, in the order in which to try them.
        seconds: What trying them all takes; 0 if that is not known.
    """

    rows: Array
    seconds: float = 0.0


def most_valuable(scene: Scene) -> Verifications:
    """Return the claims that would add to the measured front, the most valuable first."""
    codes, means, reach = scene.claims()
    gains = _gains(scene.measured_front, means, reach) / max(scene.volume, 1e-12)
    order = np.argsort(-gains, kind="stable")
    return Verifications(rows=codes[order[gains[order] >= WORTH]])


def planned(scene: Scene, pace: Pace) -> Verifications:
    """Return the few claims that together add most for the time that verifying them takes.

    Args:
        scene: What is known.
        pace: Says how long trials take.
    """
    codes, means, reach = scene.claims()
    front, volume = scene.measured_front, max(scene.volume, 1e-12)
    gains = _gains(front, means, reach) / volume
    seconds = pace.seconds(codes)
    best = np.argsort(-gains / seconds, kind="stable")[:_CONSIDERED]
    best = np.union1d(best, np.argsort(-gains, kind="stable")[:_CONSIDERED])
    codes, means, reach, seconds = codes[best], means[best], reach[best], seconds[best]
    chosen: list[int] = []
    for _ in range(min(_MOST_PLANNED, len(codes))):
        gains = _gains(front, means, reach) / volume
        worth = np.where(gains >= WORTH, gains / seconds, 0.0)
        index = int(np.argmax(worth))
        if worth[index] <= 0.0:
            break
        chosen.append(index)
        front = np.where(reach[index], np.minimum(front, means[index]), front)
    return Verifications(rows=codes[chosen], seconds=float(seconds[chosen].sum()))


def _gains(front: Array, means: Array, reach: NDArray[np.bool_]) -> Array:
    """Return how much each claim adds to a front of losses by cell, `[claims]`."""
    better = front[None] - means[:, None]
    return np.asarray(np.where(reach, np.maximum(better, 0.0), 0.0).sum(1))
