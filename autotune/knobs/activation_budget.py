"""How much of what a compiled model would keep for backward it may keep.

The compiler chooses what to compute again so that the rest fits into that share, cheapest first. A
share below one half is not offered: there the values that are computed again have to be there at
the same time, and the peak rises.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from autotune.core.context import Context
from autotune.core.domains import Choice
from autotune.core.knob import Knob, Numerics
from autotune.knobs.stages import STEP, StepPlan

if TYPE_CHECKING:
    import torch

HEEDED_BY = ("partitioner", "inductor")
"""Values of `compile` that choose what is kept."""


def _limit(plan: StepPlan, value: float) -> StepPlan:
    def limited(device: torch.device) -> AbstractContextManager[Any]:
        from torch._functorch import config

        # Compilation happens in the first forward pass, and again when shapes change.
        opened: AbstractContextManager[Any] = config.patch(activation_memory_budget=value)
        return opened

    return replace(plan, around_forward=(*plan.around_forward, limited))


def _needs_compiler(value: float, context: Context) -> str | None:
    chosen = context.config.get("compile", "none")
    if value == 1.0:
        return None
    if chosen in HEEDED_BY:
        return _leaves_a_choice(context)
    return (
        "only a compiler that chooses what is kept for backward can heed a budget: set compile "
        "to partitioner or inductor, or activation_budget to 1.0"
    )


def _leaves_a_choice(context: Context) -> str | None:
    if context.config.get("checkpointing", "none") != "full":
        return None
    return (
        "with every block computed again there is nothing left to choose: set activation_budget "
        "to 1.0, or checkpointing to none"
    )


ACTIVATION_BUDGET = Knob(
    name="activation_budget",
    help="Share of the activations of a compiled model that may be kept for the backward pass; "
    "the others are computed again, cheapest first.",
    domain=Choice((1.0, 0.75, 0.5)),
    neutral=1.0,
    leanest=0.5,
    label="activation budget {}",
    numerics=Numerics.CLOSE,
    transforms=(STEP.do(_limit),),
    blocked=_needs_compiler,
    references=(
        "Beaumont et al. 2019, arXiv:1911.13214 (optimal checkpointing under a budget)",
        "https://pytorch.org/blog/activation-checkpointing-techniques/",
    ),
)
