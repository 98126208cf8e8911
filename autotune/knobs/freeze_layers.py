"""Lower blocks that stay as they were loaded: no gradients, no states, and often no activations.

The lowest blocks of a pretrained model hold what most tasks share, and change least in
fine-tuning. Backward still passes through frozen blocks while anything below them trains; once the
embeddings are frozen too (`freeze.embeddings`), it ends above them, and they keep no activations.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from autotune.core.context import Context
from autotune.core.domains import Choice
from autotune.core.knob import Knob, Numerics
from autotune.knobs.stages import ADAPT, on_model

if TYPE_CHECKING:
    from torch import nn


def frozen_blocks(blocks: int, share: float) -> int:
    """Return how many of a stack's blocks are frozen: at least one, and never all.

    Args:
        blocks: Blocks of the stack.
        share: Part of them, above 0 and below 1; rounded to the nearest whole number, halves up.

    Returns:
        0 if there is only one block, which must train.
    """
    return min(blocks - 1, max(1, int(share * blocks + 0.5)))


def reason_not_to_freeze(knob: str, neutral: str, context: Context) -> str | None:
    """Return why nothing of a model should be frozen, or None.

    Args:
        knob: Which knob would do it.
        neutral: Its neutral value, as it is typed.
        context: The configuration and the model.
    """
    if context.config.get("lora.rank", 0):
        return (
            "adapters freeze the whole model already, and each block needs its own: "
            f"set {knob} to {neutral}, or lora.rank to 0"
        )
    if context.model.family and not context.model.pretrained:
        return (
            "the model is trained from scratch, and what is frozen would stay random: "
            f"set {knob} to {neutral}"
        )
    return None


def _freeze(model: nn.Module, value: float) -> nn.Module:
    from autotune.core.errors import ModelError
    from autotune.knobs.blocks import find_blocks

    stacks: dict[str, list[nn.Module]] = {}
    for name, block in find_blocks(model):
        stacks.setdefault(name.rpartition(".")[0], []).append(block)
    lowest = [b for stack in stacks.values() for b in stack[: frozen_blocks(len(stack), value)]]
    if not lowest:
        raise ModelError(
            f"{type(model).__name__} has one block only, which must train",
            help="set freeze.layers to 0.0",
        )
    for block in lowest:
        block.requires_grad_(False)
    return model


def _needs_blocks_to_spare(value: float, context: Context) -> str | None:
    if value == 0.0:
        return None
    if context.model.layers == 1:
        return "the model has one block only, which must train: set freeze.layers to 0.0"
    return reason_not_to_freeze("freeze.layers", "0.0", context)


FREEZE_LAYERS = Knob(
    name="freeze.layers",
    help="Share of the lowest blocks (of encoder and decoder each) that do not train, rounded to "
    "whole blocks; memory falls most together with freeze.embeddings.",
    domain=Choice((0.0, 0.25, 0.5, 0.75)),
    neutral=0.0,
    leanest=0.75,
    label="freeze layers {}",
    numerics=Numerics.LOSSY,
    transforms=(ADAPT.do(on_model(_freeze)),),
    blocked=_needs_blocks_to_spare,
    references=("Lee et al. 2019, arXiv:1911.03090",),
)
