"""Configurations to choose among: legal ones to start from, and changes of those that are good."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from autotune.core.context import Context
from autotune.core.space import Space
from autotune.search.features import Features

Array = NDArray[np.float64]

POOL = 300
"""Legal configurations to start from."""

_ATTEMPTS = 5 * POOL
_MOST_REMEMBERED = 200_000


class Legality:
    """Judges rows of codes, and remembers: a judgement walks through every knob and rule.

    Args:
        features: Of the space.
        space: What may be tried.
        context: What legality is judged by.
    """

    def __init__(self, features: Features, space: Space, context: Context) -> None:
        self._features = features
        self._space = space
        self._context = context
        self._known: dict[bytes, bool] = {}

    def __call__(self, row: Array) -> bool:
        """Whether a row of codes, `[columns]`, is a legal configuration."""
        key = row.tobytes()
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= _MOST_REMEMBERED:
                self._known.clear()
            known = self._space.compatible(self._features.config(row), self._context)
            self._known[key] = known
        return known

    def pool(self, rng: np.random.Generator) -> Array:
        """Return legal configurations from all over the space, `[n, columns]`, n up to `POOL`.

        In a space with many rules hardly any uniform draw is legal, so legal configurations are
        also changed, a knob or two at a time, beginning with the baseline and the smallest one.
        """
        starts = (self._space.baseline(), self._space.smallest(self._context))
        found = [row for c in starts if (row := self._features.codes(c)) is not None]
        found = [row for row in found if self(row)]
        everything = self._features.everything
        uniform = iter(self._features.draw(rng, _ATTEMPTS))
        for attempt in range(_ATTEMPTS):
            if attempt % 2 or not found:
                row = next(uniform)
            else:
                parent = found[int(rng.integers(len(found)))]
                row = self._features.changed(rng, parent[None], everything, 2.0)[0]
            if self(row):
                found.append(row)
            if len(found) >= 2 * POOL:
                break
        distinct = np.unique(np.stack(found), axis=0) if found else np.empty((0, len(everything)))
        if len(distinct) <= POOL:
            return distinct
        return distinct[np.sort(rng.choice(len(distinct), POOL, replace=False))]


def spread_out(
    points: Array, amounts: Array, *, known: Array, limit: float, parts: NDArray[np.intp]
) -> NDArray[np.intp]:
    """Return indices of points in the order in which to try them, to see something of everything.

    The range of amounts is cut into parts, and each turn is another part's. The first index is the
    one within the part whose point is farthest from all that are known; then come all others by
    ascending amount.

    Args:
        points: `[n, columns]`, at least one.
        amounts: `[n]`; those over the limit are left out, unless all are.
        known: `[m, columns]`; the turn follows from m.
        limit: Of the amounts.
        parts: The order in which parts have their turns.
    """
    order = np.argsort(amounts, kind="stable")
    fitting = order[amounts[order] <= limit]
    order = fitting if len(fitting) else order[:1]
    part = np.array_split(order, len(parts))[parts[len(known) % len(parts)]]
    if not len(known):
        return np.concatenate([part[:1], order])
    apart = ((points[:, None, :] - known[None, :, :]) ** 2).sum(2).min(1)
    if not len(part) or apart[part].max() == 0.0:
        part = order
    return np.concatenate([part[[int(np.argmax(apart[part]))]], order])


def nearest(points: Array, others: Array) -> Array:
    """Return for each point how far the nearest of the others is, by its most different feature.

    Args:
        points: `[n, columns]`.
        others: `[m, columns]`.
    """
    if not len(others) or not points.shape[1]:
        return np.full(len(points), np.inf)
    return np.asarray(np.abs(points[:, None, :] - others[None, :, :]).max(2).min(1))
