"""What codes of a frozen weight stand for: even steps, normal quantiles, or floats of 8 bits.

Weights are spread about normally, so 16 levels at the quantiles of a normal distribution serve them
better than 16 even steps of as many bits: having no zero point, their groups of 64 take the 4.25
bits that even steps need groups of 128 for. Floats of 8 bits have fine steps near zero and one
scale per output: half a bit less than even steps in groups, and less exact unless outliers are far.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from autotune.core.context import Context
from autotune.core.domains import Choice
from autotune.core.knob import Knob, Numerics
from autotune.knobs.stages import ADAPT, on_model

if TYPE_CHECKING:
    from torch import nn

BITS = {"nf4": 4, "float8": 8}
"""The width that a format needs."""


def _choose(model: nn.Module, value: str) -> nn.Module:
    from autotune.knobs.packed import choose_grid

    choose_grid(model, format=value)
    return model


def _needs_its_width(value: str, context: Context) -> str | None:
    bits = context.config.get("weight_bits", 16)
    if value not in BITS or bits == BITS[value]:
        return None
    return (
        f"{value} is a format of {BITS[value]} bits, and weight_bits is {bits}: set weight_bits "
        f"to {BITS[value]}, or weight_bits.format to integer"
    )


WEIGHT_FORMAT = Knob(
    name="weight_bits.format",
    help="What the codes of frozen weights stand for: even steps, normal quantiles (nf4, with "
    "weight_bits 4) or small floats (float8, with weight_bits 8).",
    domain=Choice(("integer", "nf4", "float8")),
    neutral="integer",
    leanest="integer",
    label="{} weights",
    numerics=Numerics.LOSSY,
    transforms=(ADAPT.do(on_model(_choose)),),
    blocked=_needs_its_width,
    references=(
        "Dettmers et al. 2023, arXiv:2305.14314",
        "Micikevicius et al. 2022, arXiv:2209.05433",
    ),
)
