"""Inputs of 8 bits at inference: what the blocks multiply is rounded, each token by its own scale.

With weights of 8 bits, products are then sums of whole numbers (`knobs/integer_products.py`), which
processors with instructions for them do several times faster, and no dense weight is rebuilt for a
product. Training is as without it. It says what rounded inputs cost in accuracy; plain transformers
does not round them, so a deployed model is a little better than it was evaluated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from autotune.core.context import Context
from autotune.core.domains import Choice
from autotune.core.knob import Knob, Numerics
from autotune.knobs.stages import COMPRESS

if TYPE_CHECKING:
    from torch import nn


def _round(model: nn.Module, value: int) -> nn.Module:
    from autotune.knobs.integer_products import round_inputs

    return round_inputs(model)


def _needs_eight_bit_weights(value: int, context: Context) -> str | None:
    bits = (context.config.get("deploy.bits", 16), context.config.get("qat.bits", 16))
    if value == 16 or 8 in bits:
        return None
    return (
        "inputs of 8 bits are multiplied with weights of 8 bits: set deploy.bits or qat.bits to 8, "
        "or deploy.activation_bits to 16"
    )


DEPLOY_ACTIVATION_BITS = Knob(
    name="deploy.activation_bits",
    help="Bits of what the blocks' weights are multiplied with once trained; 8 needs weights of 8 "
    "bits, and saves time on processors with integer products, nothing in training.",
    domain=Choice((16, 8)),
    neutral=16,
    leanest=16,
    label="{}-bit inputs",
    numerics=Numerics.LOSSY,
    transforms=(COMPRESS.do(_round),),
    blocked=_needs_eight_bit_weights,
    references=("Dettmers et al. 2022, arXiv:2208.07339", "Yao et al. 2022, arXiv:2206.01861"),
)
