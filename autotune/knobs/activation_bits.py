"""Saved activations in eight bits: what backward needs is rounded, the forward pass is not.

Each row of an activation is kept as signed bytes with one scale, a quarter of fp32 and half of
bf16. Losses are those of the plain model; gradients carry the rounding, about 0.4 % of the largest
value of a row. Weights, masks and what a gradient depends on exponentially stay as they are
(`knobs/saved_tensors.py`).
"""

from __future__ import annotations

from dataclasses import replace

from autotune.core.context import Context
from autotune.core.domains import Choice
from autotune.core.knob import Knob, Numerics
from autotune.knobs.stages import STEP, StepPlan


def _round_saved(plan: StepPlan, value: int) -> StepPlan:
    from autotune.knobs.saved_tensors import EightBits, may_be_rounded, saving

    rounded = saving(lambda: EightBits, may_be_rounded)
    return replace(plan, around_forward=(*plan.around_forward, rounded))


def _hooks_once(value: int, context: Context) -> str | None:
    if value == 16:
        return None
    where = context.config.get("activation_offload", "none")
    if where != "none":
        return (
            "activations that leave the device are kept as they are: set activation_bits to 16, "
            "or activation_offload to none"
        )
    return None


ACTIVATION_BITS = Knob(
    name="activation_bits",
    help="Bits in which activations are saved for the backward pass: 16 keeps them as computed, 8 "
    "rounds them, one scale per row; gradients are then slightly off, losses are not.",
    domain=Choice((16, 8)),
    neutral=16,
    leanest=8,
    label="{}-bit activations",
    numerics=Numerics.LOSSY,
    transforms=(STEP.do(_round_saved),),
    blocked=_hooks_once,
    references=(
        "Chen et al. 2021, arXiv:2104.14129 (ActNN)",
        "Liu et al. 2022, arXiv:2206.11357 (GACT)",
    ),
)
