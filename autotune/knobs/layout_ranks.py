"""How many processes, with one device each, make one training.

The global batch and the order of the data stay as they are, so the loss does, too. How ranks divide
the work is said by the other `layout` knobs; what they leave over, sees different sequences.
"""

from __future__ import annotations

from dataclasses import replace

from autotune.core.domains import Choice
from autotune.core.knob import Knob, Numerics
from autotune.knobs.layouts import RANKS, refuse_ranks
from autotune.knobs.stages import LAYOUT, LayoutPlan


def _spread(plan: LayoutPlan, value: int) -> LayoutPlan:
    return replace(plan, ranks=value)


LAYOUT_RANKS = Knob(
    name="layout.ranks",
    help="Processes, with one device each, that train together at the same global batch.",
    domain=Choice(RANKS),
    neutral=1,
    leanest=RANKS[-1],
    label="{} ranks",
    numerics=Numerics.EXACT,
    transforms=(LAYOUT.do(_spread),),
    blocked=refuse_ranks,
    references=("Li et al. 2020, arXiv:2006.15704 (data parallel)",),
)
