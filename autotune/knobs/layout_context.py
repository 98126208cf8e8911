"""A part of each sequence on each rank; attention gathers the keys and values of all parts.

Activations and logits of long sequences are divided; weights, gradients and states are not.
"""

from __future__ import annotations

from dataclasses import replace

from autotune.core.context import Context
from autotune.core.domains import Choice
from autotune.core.knob import Knob, Numerics
from autotune.knobs.layouts import DEGREES, layout_of, refuse_context
from autotune.knobs.stages import LAYOUT, LayoutPlan


def _split(plan: LayoutPlan, value: int) -> LayoutPlan:
    return replace(plan, context=value)


def _needs_ranks(value: int, context: Context) -> str | None:
    if value > 1 and layout_of(context).ranks == 1:
        return f"parts of a sequence on {value} ranks need ranks: set layout.ranks to {value}"
    return refuse_context(value, context)


LAYOUT_CONTEXT = Knob(
    name="layout.context",
    help="Ranks that have a part of each sequence each; activations of long sequences are divided.",
    domain=Choice(DEGREES),
    neutral=1,
    leanest=DEGREES[-1],
    label="context {}",
    numerics=Numerics.EXACT,
    transforms=(LAYOUT.do(_split),),
    blocked=_needs_ranks,
    references=(
        "Li et al. 2021, arXiv:2105.13120 (sequence parallelism)",
        "Dubey et al. 2024, arXiv:2407.21783 (all-gathered keys and values)",
    ),
)
