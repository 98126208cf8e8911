"""The dtype of gradients: that of the weights, or bf16 for weights in fp32.

Each gradient is rounded as autograd stores it, so those of all weights together take half the
memory; only the one that is being computed exists in fp32. The optimizer computes in fp32 as ever.
With accumulation, micro-batches are added up in bf16, whose sum loses what is below its last place.
"""

from __future__ import annotations

from dataclasses import replace

from autotune.core.context import Context
from autotune.core.domains import Choice
from autotune.core.knob import Knob, Numerics
from autotune.knobs.precision import PRECISIONS
from autotune.knobs.stages import OPTIMISE, OptimPlan

DTYPES = {"bf16": "bfloat16"}


def _choose_dtype(plan: OptimPlan, value: str) -> OptimPlan:
    return replace(plan, gradient_dtype=DTYPES[value])


def _needs_wide_weights(value: str, context: Context) -> str | None:
    precision = str(context.config.get("precision", "fp32"))
    if value == "weights" or PRECISIONS[precision].weights == "float32":
        return None
    return (
        f"weights in {precision} have gradients in 16 bits already: "
        "set gradients to weights, or precision to fp32"
    )


GRADIENTS = Knob(
    name="gradients",
    help="The dtype of gradients: that of the weights, or bf16, which halves those of fp32 "
    "weights.",
    domain=Choice(("weights", "bf16")),
    neutral="weights",
    leanest="bf16",
    label="{} gradients",
    numerics=Numerics.CLOSE,
    transforms=(OPTIMISE.do(_choose_dtype),),
    blocked=_needs_wide_weights,
    references=("PyTorch documentation, torch.Tensor.grad_dtype",),
)
