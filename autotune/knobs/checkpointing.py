"""Activation checkpointing: blocks keep their input only and are computed again in backward.

The smallest knob that changes a model. It comes after pruning, quantisation and adapters, and
recomputes the blocks in whatever form those left them.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from autotune.core.domains import Choice
from autotune.core.knob import Knob, Numerics
from autotune.knobs.stages import ADAPT, on_model

if TYPE_CHECKING:
    from torch import nn

EVERY = {"every_other": 2, "full": 1}


def _recompute_blocks(model: nn.Module, value: str) -> nn.Module:
    from torch.utils.checkpoint import checkpoint

    from autotune.knobs.blocks import find_blocks

    # Non-reentrant checkpointing needs no input that requires a gradient, so it works on a frozen
    # base too, where transformers' own switch would add a hook to the embeddings.
    recompute = partial(checkpoint, use_reentrant=False)
    for _, block in find_blocks(model)[:: EVERY[value]]:
        vars(block).update(gradient_checkpointing=True, _gradient_checkpointing_func=recompute)
    return model


CHECKPOINTING = Knob(
    name="checkpointing",
    help="Recomputes activations of every block, or of every other one, in the backward pass; "
    "trades a third of the time for most of the activation memory, same result.",
    domain=Choice(("none", "every_other", "full")),
    neutral="none",
    leanest="full",
    label="ckpt {}",
    numerics=Numerics.EXACT,
    transforms=(ADAPT.do(on_model(_recompute_blocks)),),
    references=("Chen et al. 2016, arXiv:1604.06174",),
)
