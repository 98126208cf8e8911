"""In which order the stages of a pipeline do forward and backward passes.

`gpipe` does all forward passes and then all backward passes, so activations of every micro-batch
are kept; `1f1b` starts each backward pass as soon as it can, and keeps no more than there are
stages. Both wait equally long.
"""

from __future__ import annotations

from dataclasses import replace

from autotune.core.context import Context
from autotune.core.domains import Choice
from autotune.core.knob import Knob, Numerics
from autotune.knobs.layouts import piped, refuse_idle
from autotune.knobs.stages import LAYOUT, LayoutPlan


def _order(plan: LayoutPlan, value: str) -> LayoutPlan:
    return replace(plan, schedule=value)


def _needs_pipeline(value: str, context: Context) -> str | None:
    return refuse_idle(
        value,
        context,
        neutral="1f1b",
        used=piped,
        help="only a pipeline has a schedule: set layout.pipeline above 1, or layout.schedule to "
        "1f1b",
    )


LAYOUT_SCHEDULE = Knob(
    name="layout.schedule",
    help="Order of a pipeline's passes: one forward, one backward (1f1b), or all forward passes "
    "first (gpipe), which keeps the activations of all micro-batches.",
    domain=Choice(("1f1b", "gpipe")),
    neutral="1f1b",
    leanest="1f1b",
    label="{}",
    numerics=Numerics.EXACT,
    transforms=(LAYOUT.do(_order),),
    blocked=_needs_pipeline,
    references=(
        "Huang et al. 2019, arXiv:1811.06965 (GPipe)",
        "Narayanan et al. 2021, arXiv:2104.04473 (1F1B)",
    ),
)
