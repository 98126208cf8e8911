"""Where a training takes CUDA memory from: the shared pool as it grows, or one set up beforehand.

`preallocated` reserves what the budget allows in one block before the first step and gives it back
to the caching allocator, so that every later request is cut out of one segment: no holes between
segments and no calls to the driver, but all of the budget is taken from others at once. `private`
gives the training's tensors a pool of their own (`torch.cuda.MemPool`), apart from what the model
was loaded with.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from autotune.core.context import Context
from autotune.core.domains import Choice
from autotune.core.knob import Knob, Numerics
from autotune.knobs.allocator import needs_cuda
from autotune.knobs.stages import PARALLELISE, STEP, StepPlan

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import torch
    from torch import nn

PREALLOCATED_SHARE = 0.95
"""Part of what the limit leaves that is taken at once: the rest is for rounding."""


def _reserve(model: nn.Module, value: str) -> nn.Module:
    if value != "preallocated":
        return model
    import torch

    device = next(model.parameters()).device
    share = torch.cuda.get_per_process_memory_fraction(device)
    total = torch.cuda.get_device_properties(device).total_memory
    left = share * total - torch.cuda.memory_reserved(device)
    if left > 0:
        block = torch.empty(int(left * PREALLOCATED_SHARE), dtype=torch.uint8, device=device)
        del block  # the segment stays reserved
    return model


def _use_own(plan: StepPlan, value: str) -> StepPlan:
    if value != "private":
        return plan
    kept: dict[int, Any] = {}

    def inside(device: torch.device) -> AbstractContextManager[Any]:
        import torch

        index = device.index or 0
        if index not in kept:
            kept[index] = torch.cuda.MemPool()
        return torch.cuda.use_mem_pool(kept[index], device=device)

    return replace(plan, around_forward=(*plan.around_forward, inside))


def _on_cuda(value: str, context: Context) -> str | None:
    if value == "shared":
        return None
    reason = needs_cuda("a pool of device memory", "pool to shared", context)
    if reason is None and context.config.get("allocator", "default") == "async":
        return (
            "the asynchronous allocator leaves pools to the driver: set pool to shared, or "
            "allocator to another value"
        )
    return reason


POOL = Knob(
    name="pool",
    help="Where CUDA memory comes from: the pool that all share, one that is reserved up to the "
    "budget beforehand, or one of the training's own. Same result, no effect on a CPU.",
    domain=Choice(("shared", "preallocated", "private")),
    neutral="shared",
    leanest="shared",
    label="{} pool",
    numerics=Numerics.EXACT,
    transforms=(PARALLELISE.do(_reserve), STEP.do(_use_own)),
    blocked=_on_cuda,
    references=("PyTorch documentation, torch.cuda.MemPool",),
)
