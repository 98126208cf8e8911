"""Bits per value of optimizer states: 32, or 8 in blocks with a scale each.

Eight bits cut the states of AdamW from 8 to 2.03 bytes per trained parameter, those of Lion from 4
to 1.02. `knobs/optimizers.py` has the encoding, in plain torch, for CPU and CUDA.
"""

from __future__ import annotations

from dataclasses import replace

from autotune.core.context import Context
from autotune.core.domains import Choice
from autotune.core.knob import Knob, Numerics
from autotune.knobs.stages import OPTIMISE, OptimPlan

WITH_DENSE_STATES = ("adamw", "lion")


def _shorten_states(plan: OptimPlan, value: int) -> OptimPlan:
    return replace(plan, state_bits=value)


def _needs_dense_states(value: int, context: Context) -> str | None:
    optimizer = context.config.get("optimizer", "adamw")
    if value == 32 or optimizer in WITH_DENSE_STATES:
        return None
    return (
        f"{optimizer} keeps next to no states, so there is nothing to shorten: "
        f"set optimizer to {' or '.join(WITH_DENSE_STATES)}, or optimizer.bits to 32"
    )


OPTIMIZER_BITS = Knob(
    name="optimizer.bits",
    help="Bits per value of the optimizer's states; 8 costs little accuracy and some time per "
    "step, and needs adamw or lion.",
    domain=Choice((32, 8)),
    neutral=32,
    leanest=8,
    label="{}-bit states",
    numerics=Numerics.LOSSY,
    transforms=(OPTIMISE.do(_shorten_states),),
    blocked=_needs_dense_states,
    references=("Dettmers et al. 2022, arXiv:2110.02861",),
)
