"""Some of the blocks on each rank; micro-batches pass through them like through a pipeline.

Each stage has the weights, gradients and states of its own blocks only. Ranks wait while the
pipeline fills and drains: a share of `(stages - 1) / (micro-batches + stages - 1)` of the time.
"""

from __future__ import annotations

from dataclasses import replace

from autotune.core.context import Context
from autotune.core.domains import Choice
from autotune.core.knob import Knob, Numerics
from autotune.knobs.layouts import DEGREES, layout_of, refuse_pipeline
from autotune.knobs.stages import LAYOUT, LayoutPlan


def _split(plan: LayoutPlan, value: int) -> LayoutPlan:
    return replace(plan, pipeline=value)


def _needs_ranks(value: int, context: Context) -> str | None:
    if value > 1 and layout_of(context).ranks == 1:
        return f"{value} stages of a pipeline need ranks: set layout.ranks to {value} or more"
    return refuse_pipeline(value, context)


LAYOUT_PIPELINE = Knob(
    name="layout.pipeline",
    help="Stages that the blocks are split into, one rank each; accumulation says how many "
    "micro-batches pass through them.",
    domain=Choice(DEGREES[:-1]),
    neutral=1,
    leanest=DEGREES[-2],
    label="pipeline {}",
    numerics=Numerics.EXACT,
    transforms=(LAYOUT.do(_split),),
    blocked=_needs_ranks,
    references=("Huang et al. 2019, arXiv:1811.06965 (GPipe)",),
)
