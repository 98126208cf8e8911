"""The rank that GaLore and APOLLO project gradients to: what their states grow with.

The default is a quarter of the shorter side of each matrix, up to 128. A matrix that is no wider
than the rank is left to AdamW, whose states would be smaller.
"""

from __future__ import annotations

from dataclasses import replace

from autotune.core.context import Context
from autotune.core.domains import Choice
from autotune.core.knob import Knob, Numerics
from autotune.knobs.optimizer import WITH_PROJECTIONS
from autotune.knobs.stages import OPTIMISE, OptimPlan


def _choose_rank(plan: OptimPlan, value: int) -> OptimPlan:
    return replace(plan, rank=value)


def _needs_projections(value: int, context: Context) -> str | None:
    if value == 0:
        return None
    optimizer = context.config.get("optimizer", "adamw")
    if optimizer not in WITH_PROJECTIONS:
        return (
            f"{optimizer} projects no gradients, so there is no rank to choose: "
            f"set optimizer to {' or '.join(WITH_PROJECTIONS)}, or optimizer.rank to 0"
        )
    width = context.model.hidden
    if width and value >= width:
        return (
            f"a rank of {value} is no less than the width of {width} of the model, so nothing "
            "would be projected: set optimizer.rank to less than that, or to 0"
        )
    return None


OPTIMIZER_RANK = Knob(
    name="optimizer.rank",
    help="Rank that galore and apollo project gradients to; 0 is a quarter of each matrix's "
    "shorter side, at most 128.",
    domain=Choice((0, 8, 32, 128)),
    neutral=0,
    leanest=8,
    label="projected to {}",
    numerics=Numerics.LOSSY,
    transforms=(OPTIMISE.do(_choose_rank),),
    blocked=_needs_projections,
    references=("Zhao et al. 2024, arXiv:2403.03507", "Zhu et al. 2024, arXiv:2412.05270"),
)
