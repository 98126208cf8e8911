"""How far a worker of a parameter server may be ahead of the slowest one, in steps.

At 0 all workers' gradients make one update, as if there were one worker. Above, each gradient is an
update of its own, on parameters that may be a few steps old: no worker waits, and the optimum is
another.
"""

from __future__ import annotations

from dataclasses import replace

from autotune.core.context import Context
from autotune.core.domains import Choice
from autotune.core.knob import Knob, Numerics
from autotune.knobs.layouts import refuse_idle, served
from autotune.knobs.stages import LAYOUT, LayoutPlan


def _allow(plan: LayoutPlan, value: int) -> LayoutPlan:
    return replace(plan, staleness=value)


def _needs_server(value: int, context: Context) -> str | None:
    return refuse_idle(
        value,
        context,
        neutral=0,
        used=served,
        help="only workers of a parameter server can run ahead: set layout.data to server, or "
        "layout.staleness to 0",
    )


LAYOUT_STALENESS = Knob(
    name="layout.staleness",
    help="Steps that a worker may be ahead of the slowest, with layout.data server; 0 waits for "
    "all of them, above 0 each gradient is an update of its own.",
    domain=Choice((0, 1, 2, 4, 8)),
    neutral=0,
    leanest=0,
    label="staleness {}",
    numerics=Numerics.LOSSY,
    transforms=(LAYOUT.do(_allow),),
    blocked=_needs_server,
    references=("Ho et al. 2013, More Effective Distributed ML via a Stale Synchronous Parallel "
                "Parameter Server, NeurIPS",),
)  # fmt: skip
