"""Legal configurations near a wish: what is proposed when a wish itself cannot be."""

from __future__ import annotations

import random
from collections.abc import Callable

from autotune.core.config import Config
from autotune.core.context import Context
from autotune.core.space import Space

_MUTANTS = 30


def nearest_new(
    wish: Config,
    space: Space,
    context: Context,
    *,
    is_new: Callable[[Config], bool],
    rng: random.Random,
) -> Config | None:
    """Return a new legal configuration that differs from `wish` in few knobs, None if none is.

    Random changes of one knob come first, then of two, and so on; a sweep over the whole space
    decides whether there is anything left.

    Args:
        wish: What would be tried best.
        space: What may be tried.
        context: What legality is judged by.
        is_new: Whether a configuration is legal and was not tried.
        rng: Of the changes.
    """
    grids = {n: d.grid() for n, d in space.domains.items() if d.size != 1}
    for distance in range(1, len(grids) + 1):
        for _ in range(_MUTANTS):
            changed = {name: rng.choice(grids[name]) for name in rng.sample(list(grids), distance)}
            config = Config({**wish, **changed}, space.knobs)
            if is_new(config):
                return config
    return next((config for config in space.enumerate(context) if is_new(config)), None)
