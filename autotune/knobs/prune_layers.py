"""Dropping whole blocks: the shallow model starts from evenly spread blocks of the deep one.

Everything shrinks with the depth: weights, gradients, states, activations, and time. A model that
starts from blocks of another one ends far above one of the same depth that starts from nothing.
With `prune.importance`, the blocks that matter least go in place of every so-manieth.
"""

from __future__ import annotations

from autotune.core.context import Context
from autotune.core.domains import Choice
from autotune.core.knob import Knob, Numerics
from autotune.knobs.architectures import BLOCKS, kept_blocks
from autotune.knobs.stages import ADAPT, Adaptation


def _prune(state: Adaptation, value: float) -> Adaptation:
    from autotune.knobs.pruning import prune_blocks

    prune_blocks(state, value)
    return state


def _needs_blocks_to_spare(value: float, context: Context) -> str | None:
    model = context.model
    if value == 0.0 or not model.family:
        return None
    if model.family not in BLOCKS:
        return (
            f"the blocks of the family '{model.family}' are not known: set prune.layers to 0.0 "
            f"(known: {', '.join(sorted(BLOCKS))})"
        )
    if not model.layers:
        return None
    kept = kept_blocks(model.layers, value)
    if not 0 < kept < model.layers:
        left = "would leave none" if kept <= 0 else "comes to no whole one"
        return (
            f"prune.layers {value:g} of {model.layers} blocks {left}: set prune.layers to another "
            "share, or to 0.0"
        )
    if kept == 1 and context.config.get("freeze.layers", 0.0):
        return (
            f"prune.layers {value:g} leaves one of {model.layers} blocks, which must train: set "
            "freeze.layers to 0.0, or prune.layers to a smaller share"
        )
    return None


PRUNE_LAYERS = Knob(
    name="prune.layers",
    help="Share of whole blocks that is dropped (of encoder and decoder each), rounded to the "
    "nearest number of blocks; the first and the last one stay.",
    domain=Choice((0.0, 0.25, 0.5, 0.75)),
    neutral=0.0,
    leanest=0.75,
    label="prune layers {}",
    numerics=Numerics.LOSSY,
    transforms=(ADAPT.do(_prune),),
    blocked=_needs_blocks_to_spare,
    references=(
        "Fan et al. 2019, arXiv:1909.11556",
        "Shleifer and Rush 2020, arXiv:2010.13002",
        "Men et al. 2024, arXiv:2403.03853",
    ),
)
