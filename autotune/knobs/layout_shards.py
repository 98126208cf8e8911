"""Ranks that share one copy of the states, where several copies are kept (HSDP).

Fewer ranks in a group keep the exchange of weights among neighbours, for more memory.
"""

from __future__ import annotations

from dataclasses import replace

from autotune.core.context import Context
from autotune.core.domains import Choice
from autotune.core.knob import Knob, Numerics
from autotune.knobs.layouts import DEGREES, divided, refuse_idle
from autotune.knobs.stages import LAYOUT, LayoutPlan


def _group(plan: LayoutPlan, value: int) -> LayoutPlan:
    return replace(plan, shards=value)


def _needs_shards(value: int, context: Context) -> str | None:
    return refuse_idle(
        value,
        context,
        neutral=0,
        used=divided,
        help="groups that share states need states that are shared: set layout.data to zero3 and "
        "layout.ranks above 1, or layout.shards to 0",
    )


LAYOUT_SHARDS = Knob(
    name="layout.shards",
    help="Ranks that share one copy of what zero2 and zero3 divide; 0 for all of them.",
    domain=Choice((0, *DEGREES[1:])),
    neutral=0,
    leanest=0,
    label="shards of {}",
    numerics=Numerics.EXACT,
    transforms=(LAYOUT.do(_group),),
    blocked=_needs_shards,
    references=("Zhao et al. 2023, arXiv:2304.11277 (hybrid sharding)",),
)
