"""Updating each parameter in the backward pass and dropping its gradient at once.

Gradients of all parameters never exist together, which saves their bytes wherever the peak is after
the backward pass has begun. `knobs/in_backward.py` does it, for every optimizer family.
"""

from __future__ import annotations

from dataclasses import replace

from autotune.core.context import Context
from autotune.core.domains import Choice
from autotune.core.knob import Knob, Numerics
from autotune.knobs.precision import PRECISIONS
from autotune.knobs.stages import OPTIMISE, OptimPlan


def _update_in_backward(plan: OptimPlan, value: str) -> OptimPlan:
    return replace(plan, in_backward=True)


def _needs_final_gradients(value: str, context: Context) -> str | None:
    config = context.config
    if value == "no":
        return None
    if config.get("accumulation", 1) != 1:
        return (
            "gradients of several micro-batches must be kept to be added up: set accumulation "
            "to 1, or optimizer.in_backward to no"
        )
    precision = str(config.get("precision", "fp32"))
    if PRECISIONS[precision].scaled:
        return (
            f"the loss is scaled in {precision}, and whether gradients are finite is known only "
            "after the backward pass: set precision to bf16 or fp32, or optimizer.in_backward to no"
        )
    if config.get("optimizer.offload", "none") != "none":
        return (
            "updates on the host wait for all gradients, so none can happen in the backward pass: "
            "set optimizer.offload to none, or optimizer.in_backward to no"
        )
    return None


OPTIMIZER_IN_BACKWARD = Knob(
    name="optimizer.in_backward",
    help="Updates each parameter in the backward pass and drops its gradient, so gradients never "
    "exist all at once; each is clipped by its own norm, since that of all is not known.",
    domain=Choice(("no", "yes")),
    neutral="no",
    leanest="yes",
    label="update in backward",
    numerics=Numerics.LOSSY,
    transforms=(OPTIMISE.do(_update_in_backward),),
    blocked=_needs_final_gradients,
    references=("Lv et al. 2023, arXiv:2306.09782",),
)
