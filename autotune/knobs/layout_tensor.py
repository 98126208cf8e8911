"""Every matrix of a block shared by ranks: some of the heads, some of the feed-forward units.

Matrices into heads and units are cut by rows, those out of them by columns, so that two sums over
the ranks in each block and direction are all that is exchanged.
"""

from __future__ import annotations

from dataclasses import replace

from autotune.core.context import Context
from autotune.core.domains import Choice
from autotune.core.knob import Knob, Numerics
from autotune.knobs.layouts import DEGREES, layout_of, refuse_tensor
from autotune.knobs.stages import LAYOUT, LayoutPlan


def _share(plan: LayoutPlan, value: int) -> LayoutPlan:
    return replace(plan, tensor=value)


def _needs_ranks(value: int, context: Context) -> str | None:
    if value > 1 and layout_of(context).ranks == 1:
        return f"matrices shared by {value} ranks need ranks: set layout.ranks to {value} or more"
    return refuse_tensor(value, context)


LAYOUT_TENSOR = Knob(
    name="layout.tensor",
    help="Ranks that share each matrix of a block: heads and feed-forward units are divided.",
    domain=Choice(DEGREES),
    neutral=1,
    leanest=DEGREES[-1],
    label="tensor {}",
    numerics=Numerics.EXACT,
    transforms=(LAYOUT.do(_share),),
    blocked=_needs_ranks,
    references=("Shoeybi et al. 2019, arXiv:1909.08053 (Megatron-LM)",),
)
