"""How many neighbouring weights share a scale and a zero point, each of 16 bits.

Groups of 64 add half a bit to every weight, groups of 32 a whole one, and groups of 128 a quarter.
Smaller groups follow the weights more closely, which is worth most at 2 and 3 bits. The group is
also that of `qat.bits` and `deploy.bits`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from autotune.core.context import Context
from autotune.core.domains import Choice
from autotune.core.knob import Knob, Numerics
from autotune.knobs.architectures import kept_groups, kept_width
from autotune.knobs.stages import ADAPT, on_model

if TYPE_CHECKING:
    from torch import nn

QUANTISING = ("weight_bits", "qat.bits", "deploy.bits")
"""Knobs whose weights have groups, when they are below 16."""


def _choose(model: nn.Module, value: int) -> nn.Module:
    from autotune.knobs.packed import choose_grid

    choose_grid(model, group=value)
    return model


def _blocked(value: int, context: Context) -> str | None:
    if value == WEIGHT_GROUP.neutral:
        return None
    if all(context.config.get(name, 16) == 16 for name in QUANTISING):
        return (
            "no weight is quantised, so there is nothing to group: set weight_bits.group to 64, "
            f"or one of {', '.join(QUANTISING)} below 16"
        )
    if context.config.get("weight_bits.format") == "float8":
        return "float8 has one scale for each output and no groups: set weight_bits.group to 64"
    odd = next((width for width in _widths(context) if width % value), None)
    if odd is None:
        return None
    return f"does not divide the {odd} inputs of a layer: set weight_bits.group to 64"


def _widths(context: Context) -> Iterator[int]:
    """Yield the known widths that layers of the blocks multiply, as pruning leaves them."""
    model, config = context.model, context.config
    yield model.hidden
    yield kept_width(model.ffn, float(config.get("prune.ffn", 0.0))) if model.ffn else 0
    if model.heads and model.kv_heads:
        groups = kept_groups(model.kv_heads, float(config.get("prune.heads", 0.0)))
        yield (groups or 0) * model.hidden // model.kv_heads


WEIGHT_GROUP = Knob(
    name="weight_bits.group",
    help="Quantised weights that share a scale: 32 follow the weights more closely and cost half "
    "a bit more than 64, 128 cost a quarter of a bit less.",
    domain=Choice((32, 64, 128)),
    neutral=64,
    leanest=128,
    label="groups of {}",
    numerics=Numerics.LOSSY,
    transforms=(ADAPT.do(on_model(_choose)),),
    blocked=_blocked,
    references=("Dettmers et al. 2023, arXiv:2305.14314",),
)
