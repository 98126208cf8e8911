"""How many tensors torch's optimizer updates at once: a choice of memory and speed, not of result.

`fused` is one kernel without temporaries. `foreach` treats all parameters together, one operation
after the other, and its temporaries are as large as all of them: on a model whose peak is in the
optimizer step, that is the peak. `loop` goes parameter by parameter.
"""

from __future__ import annotations

from dataclasses import replace

from autotune.core.context import Context
from autotune.core.domains import Choice
from autotune.core.knob import Knob, Numerics
from autotune.knobs.precision import PRECISIONS
from autotune.knobs.stages import OPTIMISE, OptimPlan

WITH_KERNELS = ("adamw", "sgd")

_ELSEWHERE = (
    ("optimizer.in_backward", "no", "parameters are updated one by one in the backward pass"),
    ("optimizer.offload", "none", "updates are made on the host"),
)


def _choose_kernel(plan: OptimPlan, value: str) -> OptimPlan:
    return replace(plan, kernel=value)


def _needs_torch_kernels(value: str, context: Context) -> str | None:
    if value == "fused":
        return None
    own = _updated_by_us(context)
    if own is not None:
        return (
            f"torch has no kernels for {own}, so the choice would change nothing: "
            "set optimizer.kernel to fused"
        )
    for knob, neutral, reason in _ELSEWHERE:
        if context.config.get(knob, neutral) != neutral:
            return (
                f"{reason}, which makes no temporaries that a kernel could save: "
                f"set optimizer.kernel to fused, or {knob} to {neutral}"
            )
    return None


def _updated_by_us(context: Context) -> str | None:
    config = context.config
    optimizer, bits = config.get("optimizer", "adamw"), config.get("optimizer.bits", 32)
    precision = str(config.get("precision", "fp32"))
    if optimizer not in WITH_KERNELS:
        return f"{optimizer} as it is here"
    if bits != 32:
        return f"states in {bits} bits"
    if PRECISIONS[precision].weights != "float32":
        return f"weights in {precision} that are rounded without bias"
    if config.get("gradients", "weights") != "weights":
        return f"weights in {precision} with gradients in {config['gradients']}"
    return None


OPTIMIZER_KERNEL = Knob(
    name="optimizer.kernel",
    help="Which of torch's kernels updates parameters: foreach needs temporaries as large as all "
    "of them together, loop as the largest one, fused none; same result.",
    domain=Choice(("fused", "foreach", "loop")),
    neutral="fused",
    leanest="fused",
    label="{} kernel",
    numerics=Numerics.EXACT,
    transforms=(OPTIMISE.do(_choose_kernel),),
    blocked=_needs_torch_kernels,
    references=("PyTorch documentation, torch.optim: foreach and fused implementations",),
)
