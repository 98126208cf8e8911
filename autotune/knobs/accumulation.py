"""Gradient accumulation: the global batch in several micro-batches, one after the other.

Only one micro-batch's activations and logits are alive at a time, and the gradient is the same sum,
so memory falls with the number of micro-batches while the result stays as it was.
"""

from __future__ import annotations

from dataclasses import replace

from autotune.core.context import Context
from autotune.core.domains import Choice
from autotune.core.knob import Knob, Numerics
from autotune.knobs.global_batch import effective_batch
from autotune.knobs.stages import STEP, StepPlan

DOMAIN = Choice((1, 2, 4, 8, 16, 32))


def _accumulate(plan: StepPlan, value: int) -> StepPlan:
    return replace(plan, accumulation=value)


def _must_divide(value: int, context: Context) -> str | None:
    batch = effective_batch(context)
    if value == 1 or batch % value == 0:
        return None
    fitting = ", ".join(str(v) for v in DOMAIN.values if isinstance(v, int) and batch % v == 0)
    return (
        f"accumulation {value} does not divide the global batch of {batch:g}: "
        f"use one of {fitting or 1}, or another global batch"
    )


ACCUMULATION = Knob(
    name="accumulation",
    help="Splits each global batch into that many micro-batches; less activation memory, "
    "somewhat slower, same result.",
    domain=DOMAIN,
    neutral=1,
    leanest=32,
    label="accum {}",
    numerics=Numerics.EXACT,
    transforms=(STEP.do(_accumulate),),
    blocked=_must_divide,
)
