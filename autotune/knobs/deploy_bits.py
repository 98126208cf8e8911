"""Quantisation after training: the blocks are packed once they are trained, before evaluation.

Adapters are merged into their layers first. Training is as without it, in memory and in time; what
becomes small is the model that is evaluated and deployed. Deploying makes the weights dense again
for plain transformers; their values stay rounded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from autotune.core.context import Context
from autotune.core.domains import Choice
from autotune.core.knob import Knob, Numerics
from autotune.knobs.stages import COMPRESS, DEPLOY
from autotune.knobs.weight_bits import reason_against_bits

if TYPE_CHECKING:
    from torch import nn


def _pack(model: nn.Module, value: int) -> nn.Module:
    from autotune.knobs.adapters import merge_adapters
    from autotune.knobs.packed import pack_blocks

    return pack_blocks(merge_adapters(model), value, knob="deploy.bits")


def _unpack(model: nn.Module, value: int) -> nn.Module:
    from autotune.knobs.packed import unpack_model

    return unpack_model(model)


def _needs_wide_weights(value: int, context: Context) -> str | None:
    if value == 16:
        return None
    for name in ("weight_bits", "qat.bits"):
        bits = context.config.get(name, 16)
        if bits != 16:
            return (
                f"{name} already deploys the blocks in {bits} bits: set deploy.bits to 16, "
                f"or {name} to 16"
            )
    return reason_against_bits("deploy.bits", context)


DEPLOY_BITS = Knob(
    name="deploy.bits",
    help="Bits per weight of the blocks once they are trained; saves nothing in training and most "
    "of the weights at inference.",
    domain=Choice((16, 8, 6, 5, 4, 3, 2)),
    neutral=16,
    leanest=16,
    label="deployed in {} bits",
    numerics=Numerics.LOSSY,
    transforms=(COMPRESS.do(_pack), DEPLOY.do(_unpack)),
    blocked=_needs_wide_weights,
    references=("Dettmers et al. 2022, arXiv:2208.07339", "Frantar et al. 2022, arXiv:2210.17323"),
)
