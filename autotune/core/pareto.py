"""Trade-offs: dominance, the Pareto front, its hypervolume, and the points worth looking at.

A point is `(loss, peak bytes)`, both to be minimised. A front is what remains when every point is
dropped that another one beats in one objective and does not lose to in the other. Of equal points
the first is kept, so that a front never shows the same trade-off twice.

References:
    Das 1999, "On characterizing the knee of the Pareto curve based on Normal-Boundary
    Intersection"; Branke et al. 2004, "Finding knees in multi-objective optimization".
    Zitzler and Thiele 1998 for the hypervolume, computed by moocore (Fonseca et al. 2006).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from autotune.core.record import TrialRecord
from autotune.core.workload import Metric

Point = tuple[float, float]
"""`(loss, peak bytes)`, or any two numbers to be minimised."""

NEAR = 0.01
"""Share of the best score that counts as near to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picks:
    """The trials of a front that are shown first; they may be one and the same.

    Attributes:
        best_accuracy: The best score, whatever it needs. None if no trial is feasible.
        knee: The best compromise, which is recommended.
        cheapest: The smallest peak whose score is within `NEAR` of the best.
        least_memory: The smallest peak, whatever it scores.
    """

    best_accuracy: TrialRecord | None
    knee: TrialRecord | None
    cheapest: TrialRecord | None
    least_memory: TrialRecord | None


def dominates(a: Point, b: Point) -> bool:
    """Whether `a` is at least as good as `b` in both objectives and better in one."""
    return a[0] <= b[0] and a[1] <= b[1] and a != b


def front_indices(points: Sequence[Point]) -> list[int]:
    """Return the indices of the points that no other dominates, in O(n log n).

    Args:
        points: Finite numbers, to be minimised.

    Returns:
        Indices by ascending second objective; of equal points the first.
    """
    found: list[int] = []
    least = math.inf
    for index in sorted(range(len(points)), key=lambda i: (points[i][1], points[i][0], i)):
        if points[index][0] < least:
            least = points[index][0]
            found.append(index)
    return found


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """Return the area that the points dominate and that dominates `reference`.

    Points that are not better than the reference in both objectives add nothing.
    """
    if not points:
        return 0.0
    import moocore

    return float(moocore.hypervolume([[float(a), float(b)] for a, b in points], ref=reference))


def knee(points: Sequence[Point]) -> int:
    """Return the index of the point of a front that bulges most towards the ideal.

    Both objectives are scaled to 0 … 1 over the front; the knee is the point farthest from the
    chord between its two ends, on the side of the ideal. Without such a point, and between equally
    good ones, it is the one with the smallest first objective.

    Args:
        points: A front, at least one point, in any order.
    """
    losses, peaks = zip(*points, strict=True)
    return max(
        range(len(points)),
        key=lambda i: (
            # Nearer than rounding is on the chord: the ends themselves must not win by 1e-16.
            round(1.0 - _scaled(losses[i], losses) - _scaled(peaks[i], peaks), 9),
            -losses[i],
        ),
    )


def front(records: Iterable[TrialRecord], metric: Metric) -> list[TrialRecord]:
    """Return the feasible trials that no other dominates, by ascending peak memory.

    Of trials with equal loss and peak, the one with the lowest number stands for all.
    """
    ordered = sorted(records, key=lambda record: record.number)
    pairs = [(record, record.point(metric)) for record in ordered]
    known = [(r, p) for r, p in pairs if p is not None and all(map(math.isfinite, p))]
    return [known[index][0] for index in front_indices([point for _, point in known])]


def picks(records: Iterable[TrialRecord], metric: Metric) -> Picks:
    """Return the trials worth looking at first."""
    best = front(records, metric)
    if not best:
        return Picks(best_accuracy=None, knee=None, cheapest=None, least_memory=None)
    points = [point for record in best if (point := record.point(metric)) is not None]
    bound = points[-1][0] + NEAR * abs(points[-1][0])
    near = next(index for index, point in enumerate(points) if point[0] <= bound)
    return Picks(
        best_accuracy=best[-1],
        knee=best[knee(points)],
        cheapest=best[near],
        least_memory=best[0],
    )


def reference_point(records: Iterable[TrialRecord], metric: Metric) -> Point | None:
    """Return the reference for hypervolumes of a run: its worst loss, and its memory limit.

    The worst loss is taken over feasible trials, and moved away by a tenth of their range so that
    the worst trial on the front counts too.

    Returns:
        The point, or None if no trial is feasible.
    """
    pairs = [(record.point(metric), record.limit_bytes) for record in records]
    known = [(p[0], limit) for p, limit in pairs if p is not None and math.isfinite(p[0])]
    if not known:
        return None
    losses = [loss for loss, _ in known]
    margin = 0.1 * (max(losses) - min(losses)) or 0.1 * abs(max(losses)) or 0.1
    return max(losses) + margin, float(max(limit for _, limit in known))


def _scaled(value: float, values: Sequence[float]) -> float:
    low, high = min(values), max(values)
    return (value - low) / (high - low) if high > low else 0.0
