"""Two zeros in every four weights: the sparsity that tensor cores of CUDA 8.0 and above multiply.

The two smallest of every four neighbours along the input go at the start, whatever
`prune.schedule` says, and stay zero while training by the masks of `knobs/masks.py`. On a CUDA
device of compute capability 8.0 or above, in 16 bits, the trained weights are then stored without
their zeros (`knobs/semi_structured.py`), in 9/16 of the bytes; anywhere else they are evaluated
dense, with the accuracy that they would have there. Deployed models are dense everywhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from autotune.core.context import Context
from autotune.core.domains import Choice
from autotune.core.knob import Knob, Numerics
from autotune.knobs.prune_unstructured import hold_zeros, reason_against_masks
from autotune.knobs.stages import ADAPT, COMPRESS, DEPLOY, STEP, on_model

if TYPE_CHECKING:
    from torch import nn


def _mask(model: nn.Module, value: str) -> nn.Module:
    from autotune.knobs.masks import mask_pairs

    mask_pairs(model)
    return model


def _pack(model: nn.Module, value: str) -> nn.Module:
    from autotune.knobs.masks import remove_masks
    from autotune.knobs.semi_structured import pack_pairs

    return remove_masks(pack_pairs(model))


def _unpack(model: nn.Module, value: str) -> nn.Module:
    from autotune.knobs.semi_structured import unpack_pairs

    return unpack_pairs(model)


def _blocked(value: str, context: Context) -> str | None:
    if value == "none":
        return None
    if context.config.get("prune.unstructured", 0.0):
        return (
            "two zeros in every four weights are all that a device can use: set prune.unstructured "
            "to 0.0, or prune.nm to none"
        )
    return reason_against_masks("prune.nm", "none", context)


PRUNE_NM = Knob(
    name="prune.nm",
    help="Zeroes the 2 smallest of every 4 weights of the blocks; costs one byte a weight while "
    "training, and saves memory only at inference on CUDA 8.0 and above in 16 bits.",
    domain=Choice(("none", "2:4")),
    neutral="none",
    leanest="none",
    label="{} weights zero",
    numerics=Numerics.LOSSY,
    transforms=(
        ADAPT.do(on_model(_mask)),
        STEP.do(hold_zeros),
        COMPRESS.do(_pack),
        DEPLOY.do(_unpack),
    ),
    blocked=_blocked,
    references=("Mishra et al. 2021, arXiv:2104.08378",),
)
