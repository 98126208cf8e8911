"""Low-rank adapters: the model is frozen, and each linear layer of its blocks gets a small update.

Only the updates train, so gradients and optimizer states shrink to a few per cent. A task head that
is not pretrained (a classifier) trains as it is.

`knobs/adapters.py` puts adapters on and merges them. Deploying adds each update to its dense
weight; a packed weight was made dense before (`knobs/weight_bits.py`), so the merge loses nothing
that trained. Which layers keep their adapter is for `lora.targets`, and its kind for
`lora.variant`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from autotune.core.context import Context
from autotune.core.domains import Choice
from autotune.core.knob import Knob, Numerics
from autotune.knobs.stages import ADAPT, DEPLOY, OPTIMISE, OptimPlan, on_model

if TYPE_CHECKING:
    from torch import nn


def _put(model: nn.Module, value: int) -> nn.Module:
    from autotune.knobs.adapters import put_adapters

    return put_adapters(model, value)


def _raise_rate(plan: OptimPlan, value: int) -> OptimPlan:
    return replace(plan, adapters=True)


def _merge(model: nn.Module, value: int) -> nn.Module:
    from autotune.knobs.adapters import merge_adapters

    return merge_adapters(model)


def _needs_pretrained(value: int, context: Context) -> str | None:
    if value == 0:
        return None
    if context.model.family and not context.model.pretrained:
        return (
            "the model is trained from scratch, and adapters on random frozen weights learn "
            "nothing worth having: set lora.rank to 0"
        )
    return context.lacks("peft", "peft")


LORA_RANK = Knob(
    name="lora.rank",
    help="Rank of low-rank adapters on the linear layers of the blocks, which train in place of "
    "the model; 0 trains the model itself.",
    domain=Choice((0, 4, 8, 16, 32, 64)),
    neutral=0,
    leanest=4,
    label="lora {}",
    numerics=Numerics.LOSSY,
    transforms=(ADAPT.do(on_model(_put)), OPTIMISE.do(_raise_rate), DEPLOY.do(_merge)),
    blocked=_needs_pretrained,
    references=("Hu et al. 2021, arXiv:2106.09685", "Schulman et al. 2025, LoRA Without Regret"),
)
