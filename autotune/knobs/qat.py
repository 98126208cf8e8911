"""Quantisation-aware training: the blocks compute with rounded weights while they train.

The weights that train stay as wide as `precision` says, and rounding one layer after the other
takes memory of its own, so training needs more memory rather than less. What it buys is the
deployed model: its weights are packed in `qat.bits` bits before evaluation, and it loses less than
one that was rounded after training (`deploy.bits`), since it has learned with these very values.
Deploying makes the weights dense again for plain transformers; their values stay rounded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from autotune.core.context import Context
from autotune.core.domains import Choice
from autotune.core.knob import Knob, Numerics
from autotune.knobs.stages import ADAPT, COMPRESS, DEPLOY, on_model
from autotune.knobs.weight_bits import reason_against_bits

if TYPE_CHECKING:
    from torch import nn


def _round_in_forward(model: nn.Module, value: int) -> nn.Module:
    from autotune.knobs.fake_quant import fake_quantise_blocks

    return fake_quantise_blocks(model, value)


def _bake(model: nn.Module, value: int) -> nn.Module:
    from autotune.knobs.fake_quant import bake

    return bake(model, value)


def _unpack(model: nn.Module, value: int) -> nn.Module:
    from autotune.knobs.packed import unpack_model

    return unpack_model(model)


def _needs_weights_that_train(value: int, context: Context) -> str | None:
    if value == 16:
        return None
    if context.config.get("weight_bits", 16) != 16:
        return (
            "the weights are frozen in few bits already, and only weights that train can learn to "
            "be rounded: set weight_bits to 16, or qat.bits to 16"
        )
    if context.config.get("lora.rank", 0):
        return (
            "adapters freeze the weights that would learn to be rounded: set lora.rank to 0, or "
            "qat.bits to 16 and deploy.bits below it"
        )
    return reason_against_bits("qat.bits", context)


QAT_BITS = Knob(
    name="qat.bits",
    help="Bits per weight that the blocks compute with while they train, and are deployed with; "
    "training takes more memory for it, and the small model is more accurate.",
    domain=Choice((16, 8, 4, 3, 2)),
    neutral=16,
    leanest=16,
    label="qat {} bits",
    numerics=Numerics.LOSSY,
    transforms=(
        ADAPT.do(on_model(_round_in_forward)),
        COMPRESS.do(_bake),
        DEPLOY.do(_unpack),
    ),
    blocked=_needs_weights_that_train,
    references=("Jacob et al. 2017, arXiv:1712.05877", "Bengio et al. 2013, arXiv:1308.3432"),
)
