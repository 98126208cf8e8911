"""What becomes of gradients after a step: their memory is released, or kept and set to zero.

Kept, they are there while activations are, and the peak is higher by all of them. What that buys is
an allocator that need not find the memory anew in every step.
"""

from __future__ import annotations

from dataclasses import replace

from autotune.core.context import Context
from autotune.core.domains import Choice
from autotune.core.knob import Knob, Numerics
from autotune.knobs.stages import STEP, StepPlan


def _keep(plan: StepPlan, value: str) -> StepPlan:
    return replace(plan, keep_gradients=True)


def _needs_gradients_after_backward(value: str, context: Context) -> str | None:
    if value == "release" or context.config.get("optimizer.in_backward", "no") == "no":
        return None
    return (
        "gradients are dropped in the backward pass, so there are none to keep: "
        "set zero_grad to release, or optimizer.in_backward to no"
    )


ZERO_GRAD = Knob(
    name="zero_grad",
    help="Whether the memory of gradients is released after a step, or kept for the next one, "
    "which costs that much more in the forward pass; same result.",
    domain=Choice(("release", "keep")),
    neutral="release",
    leanest="release",
    label="{} gradients",
    numerics=Numerics.EXACT,
    transforms=(STEP.do(_keep),),
    blocked=_needs_gradients_after_backward,
    references=("PyTorch documentation, torch.optim.Optimizer.zero_grad",),
)
