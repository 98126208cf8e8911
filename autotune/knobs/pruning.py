"""Pruning a model that is being adapted: measure, choose, and cut now or while it is trained.

The knobs of structured pruning come together here: `prune.importance` and `prune.schedule` say how,
`prune.ffn`, `prune.heads`, `prune.layers` and `prune.recurrent` say what and how much.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from autotune.core.errors import ModelError
from autotune.knobs.depth import choose_blocks, drop_blocks
from autotune.knobs.gradual import doom_blocks, doom_units
from autotune.knobs.importance import unit_scores
from autotune.knobs.units import Kept, Structure

if TYPE_CHECKING:
    from torch import Tensor

    from autotune.knobs.stages import Adaptation


def prune_units(state: Adaptation, structure: Structure, share: float) -> Kept:
    """Prune a share of the units of every layer, in place, now or while the model is trained.

    Args:
        state: The model, and how its units are chosen.
        structure: The kind of units.
        share: Part of them; how many that is, `structure.stay` says.

    Returns:
        The units that stay.

    Raises:
        ModelError: If the model has no such units, none would go, or they cannot be measured.
    """
    found = structure.find(state.model)
    kept: Kept = {}
    gone: dict[str, Tensor] = {}
    for units, scores in zip(found, unit_scores(state, structure, found), strict=True):
        left = structure.stay(units.count, share)
        order = scores.argsort(stable=True)
        gone[units.name] = order[: units.count - left]
        kept[units.name] = order[units.count - left :].sort().values
    if not any(len(units) for units in gone.values()):
        raise ModelError(
            f"{structure.knob} {share:g} cuts none of the {found[0].count} units of a layer, since "
            "what stays is rounded up",
            help=f"set {structure.knob} to a greater share, or to 0.0",
        )
    if state.gradual:
        doom_units(state.model, structure, kept, gone)
    else:
        structure.cut(state.model, kept)
    return kept


def prune_blocks(state: Adaptation, share: float) -> dict[str, list[int]]:
    """Prune a share of the blocks of every stack, in place, now or while the model is trained.

    Args:
        state: The model, and how its blocks are chosen.
        share: Part of them, rounded to whole ones.

    Returns:
        Numbers of the blocks that go, the least important first, by name of the stack.

    Raises:
        ModelError: If the model has no blocks, none would go, or they cannot be measured.
    """
    gone = choose_blocks(state, share)
    if state.gradual:
        doom_blocks(state.model, gone)
    else:
        drop_blocks(state.model, gone)
    return gone
