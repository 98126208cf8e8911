"""Which layers keep their adapter: all of them, those of attention, or those of the feed-forward.

Fewer adapters have fewer gradients and states, and a layer without one keeps no input for backward.
`lora.rank` puts an adapter on every linear layer of the blocks; this knob comes after it and takes
some off again. Which layers are which, is in `knobs/architectures.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from autotune.core.context import Context
from autotune.core.domains import Choice
from autotune.core.knob import Knob, Numerics
from autotune.knobs.architectures import ATTENTION_HEADS, FEED_FORWARD
from autotune.knobs.stages import ADAPT, on_model

if TYPE_CHECKING:
    from torch import nn

KNOWN = {
    "attention": ("attention", frozenset(ATTENTION_HEADS)),
    "ffn": ("feed-forward", frozenset(FEED_FORWARD)),
}
"""What each value is called, and the families in which it is known."""


def _keep(model: nn.Module, value: str) -> nn.Module:
    from autotune.knobs.adapters import keep_adapters

    return keep_adapters(model, value)


def _needs_adapters_and_names(value: str, context: Context) -> str | None:
    if value == "all":
        return None
    if not context.config.get("lora.rank", 0):
        return "there are no adapters to choose from: set lora.rank above 0, or lora.targets to all"
    layers, families = KNOWN[value]
    family = context.model.family
    if not family or family in families:
        return None
    return (
        f"the {layers} layers of the family '{family}' are not known: set lora.targets to all "
        f"(known: {', '.join(sorted(families))})"
    )


LORA_TARGETS = Knob(
    name="lora.targets",
    help="Which linear layers of the blocks get adapters: all, those of attention, or those of "
    "the feed-forward layers; the others stay frozen.",
    domain=Choice(("all", "attention", "ffn")),
    neutral="all",
    leanest="attention",
    label="lora on {}",
    numerics=Numerics.LOSSY,
    transforms=(ADAPT.do(on_model(_keep)),),
    blocked=_needs_adapters_and_names,
    references=("Hu et al. 2021, arXiv:2106.09685", "Schulman et al. 2025, LoRA Without Regret"),
)
