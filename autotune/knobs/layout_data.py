"""What is shared by the ranks that see different sequences.

`ddp` gives each of them everything and averages gradients. `zero1` gives each the optimizer states
of some parameters, which it updates and hands round. `zero2` and `zero3` give each a part of every
parameter, gradient and state; weights are gathered for a block's forward pass and kept until its
backward pass (`zero2`) or gathered again then (`zero3`). With `server`, ranks of their own hold
parameters and states; the others compute gradients.
"""

from __future__ import annotations

from dataclasses import replace

from autotune.core.context import Context
from autotune.core.domains import Choice
from autotune.core.knob import Knob, Numerics
from autotune.knobs.layouts import layout_of
from autotune.knobs.stages import LAYOUT, LayoutPlan


def _share(plan: LayoutPlan, value: str) -> LayoutPlan:
    return replace(plan, data=value)


def _needs_ranks(value: str, context: Context) -> str | None:
    if value == "ddp":
        return None
    layout = layout_of(context)
    if layout.ranks == 1:
        return f"{value} divides what several ranks hold: set layout.ranks above 1"
    if value != "server" and layout.replicas == 1:
        return (
            f"{value} divides what ranks with different sequences hold, and no ranks are left for "
            "that: set layout.data to ddp, or layout.ranks higher"
        )
    return None


LAYOUT_DATA = Knob(
    name="layout.data",
    help="What ranks that see different sequences divide among them: nothing (ddp), optimizer "
    "states (zero1), gradients too (zero2), weights too (zero3), or all of it lies with servers.",
    domain=Choice(("ddp", "zero1", "zero2", "zero3", "server")),
    neutral="ddp",
    leanest="zero3",
    label="{}",
    numerics=Numerics.EXACT,
    transforms=(LAYOUT.do(_share),),
    blocked=_needs_ranks,
    references=(
        "Rajbhandari et al. 2020, arXiv:1910.02054 (ZeRO)",
        "Zhao et al. 2023, arXiv:2304.11277 (FSDP)",
        "Li et al. 2014, Scaling Distributed Machine Learning with the Parameter Server, OSDI",
    ),
)
