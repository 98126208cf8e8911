"""Bits per value of optimizer states: 32, 16, or 8 or 4 in blocks with a scale each.

The states of AdamW shrink from 8 bytes per trained parameter to 4, 2.03 and 1.06.
`knobs/moments.py` has the encodings, in plain torch, for CPU and CUDA.
"""

from __future__ import annotations

from dataclasses import replace

from autotune.core.context import Context
from autotune.core.domains import Choice
from autotune.core.knob import Knob, Numerics
from autotune.knobs.stages import OPTIMISE, OptimPlan

WITH_DENSE_STATES = ("adamw", "lion", "muon", "galore", "apollo")


def _shorten_states(plan: OptimPlan, value: int) -> OptimPlan:
    return replace(plan, state_bits=value)


def _needs_dense_states(value: int, context: Context) -> str | None:
    optimizer = context.config.get("optimizer", "adamw")
    if value == 32 or optimizer in WITH_DENSE_STATES:
        return None
    return (
        f"{optimizer} keeps next to no states, so there is nothing to shorten: "
        "set optimizer to adamw or lion, or optimizer.bits to 32"
    )


OPTIMIZER_BITS = Knob(
    name="optimizer.bits",
    help="Bits per value of the optimizer's states; 16 and 8 cost little accuracy and some time "
    "per step, 4 a little more of both.",
    domain=Choice((32, 16, 8, 4)),
    neutral=32,
    leanest=4,
    label="{}-bit states",
    numerics=Numerics.LOSSY,
    transforms=(OPTIMISE.do(_shorten_states),),
    blocked=_needs_dense_states,
    references=(
        "8 bits: Dettmers et al. 2022, arXiv:2110.02861",
        "4 bits: Li et al. 2023, arXiv:2309.01507",
    ),
)
