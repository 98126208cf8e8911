"""Ranks that hold and update parameters and do nothing else, for `layout.data: server`.

With several of them, each holds some of the parameters, about equally many bytes.
"""

from __future__ import annotations

from dataclasses import replace

from autotune.core.context import Context
from autotune.core.domains import Choice
from autotune.core.knob import Knob, Numerics
from autotune.knobs.layouts import refuse_idle, served
from autotune.knobs.stages import LAYOUT, LayoutPlan


def _serve(plan: LayoutPlan, value: int) -> LayoutPlan:
    return replace(plan, servers=value)


def _needs_server(value: int, context: Context) -> str | None:
    return refuse_idle(
        value,
        context,
        neutral=1,
        used=served,
        help="only a parameter server has servers: set layout.data to server, or layout.servers "
        "to 1",
    )


LAYOUT_SERVERS = Knob(
    name="layout.servers",
    help="Ranks that hold parameters and optimizer states for the others, with layout.data server.",
    domain=Choice((1, 2, 4, 8)),
    neutral=1,
    leanest=8,
    label="{} servers",
    numerics=Numerics.EXACT,
    transforms=(LAYOUT.do(_serve),),
    blocked=_needs_server,
    references=("Li et al. 2014, Scaling Distributed Machine Learning with the Parameter Server",),
)
