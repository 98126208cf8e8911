"""The kind of adapter: plain low-rank updates, or updates of direction with lengths of their own.

Its authors find that DoRA does at a low rank what LoRA does at a higher one. It costs activations,
not weights: `knobs/dora.py` says which, and computes without dense temporaries. It comes after
`lora.rank`, on whatever adapters `lora.targets` left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from autotune.core.context import Context
from autotune.core.domains import Choice
from autotune.core.knob import Knob, Numerics
from autotune.knobs.stages import ADAPT, on_model

if TYPE_CHECKING:
    from torch import nn


def _decompose(model: nn.Module, value: str) -> nn.Module:
    from autotune.knobs.adapters import add_magnitudes

    return add_magnitudes(model)


def _needs_adapters(value: str, context: Context) -> str | None:
    if value == "lora" or context.config.get("lora.rank", 0):
        return None
    return "there are no adapters to decompose: set lora.rank above 0, or lora.variant to lora"


LORA_VARIANT = Knob(
    name="lora.variant",
    help="lora adds a low-rank update; dora also trains the length of each row of a weight, for "
    "more accuracy at low ranks and one more output of each adapted layer in memory.",
    domain=Choice(("lora", "dora")),
    neutral="lora",
    leanest="lora",
    numerics=Numerics.LOSSY,
    transforms=(ADAPT.do(on_model(_decompose)),),
    blocked=_needs_adapters,
    references=("Liu et al. 2024, arXiv:2402.09353",),
)
