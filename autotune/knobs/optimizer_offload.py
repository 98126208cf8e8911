"""Optimizer states in host memory, with the update computed there.

The device is left with weights, gradients and activations; each step waits for gradients to go down
the bus and weights to come up again. `knobs/offloaded.py` does it, for every optimizer family.
"""

from __future__ import annotations

from dataclasses import replace

from autotune.core.context import Context
from autotune.core.domains import Choice
from autotune.core.knob import Knob, Numerics
from autotune.knobs.stages import OPTIMISE, OptimPlan


def _update_on_host(plan: OptimPlan, value: str) -> OptimPlan:
    return replace(plan, offload=True)


def _needs_a_device(value: str, context: Context) -> str | None:
    if value == "none" or context.device.kind == "cuda":
        return None
    return (
        "on a CPU optimizer states are in host memory already: set optimizer.offload to none, "
        "or train on a CUDA device"
    )


OPTIMIZER_OFFLOAD = Knob(
    name="optimizer.offload",
    help="Keeps optimizer states in host memory and updates there, at the cost of copies over the "
    "bus in each step; same result.",
    domain=Choice(("none", "host")),
    neutral="none",
    leanest="host",
    label="states on the {}",
    numerics=Numerics.EXACT,
    transforms=(OPTIMISE.do(_update_on_host),),
    blocked=_needs_a_device,
    references=("Ren et al. 2021, arXiv:2101.06840",),
)
