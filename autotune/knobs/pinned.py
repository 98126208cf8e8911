"""Batches in page-locked host memory, which the device can copy from while it computes.

It takes host memory that cannot be swapped, and saves the time of one copy per batch.
"""

from __future__ import annotations

from dataclasses import replace

from autotune.core.context import Context
from autotune.core.domains import Choice
from autotune.core.knob import Knob, Numerics
from autotune.knobs.allocator import needs_cuda
from autotune.knobs.stages import STEP, StepPlan


def _pin(plan: StepPlan, value: str) -> StepPlan:
    return replace(plan, pinned=True)


def _on_cuda(value: str, context: Context) -> str | None:
    if value == "no":
        return None
    return needs_cuda("page-locked memory", "data.pinned to no", context)


PINNED = Knob(
    name="data.pinned",
    help="Copies batches to the device from page-locked memory; saves time, costs host memory. "
    "Same result, no effect on a CPU.",
    domain=Choice(("no", "yes")),
    neutral="no",
    leanest="no",
    label="pinned batches",
    numerics=Numerics.EXACT,
    transforms=(STEP.do(_pin),),
    blocked=_on_cuda,
    references=("PyTorch documentation, Tensor.pin_memory",),
)
