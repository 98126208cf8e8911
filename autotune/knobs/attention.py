"""The attention kernel: fused (SDPA) or written out (eager).

The fused kernel never stores the matrix of attention scores, `(batch, heads, tokens, tokens)`.
"""

from __future__ import annotations

from dataclasses import replace

from autotune.core.domains import Choice
from autotune.core.knob import Knob, Numerics
from autotune.knobs.stages import LOAD, LoadPlan


def _choose_kernel(plan: LoadPlan, value: str) -> LoadPlan:
    return replace(plan, attention=value)


ATTENTION = Knob(
    name="attention",
    help="The attention kernel: sdpa is fused and stores no score matrix, eager is for models and "
    "devices where the fused kernel is slower.",
    domain=Choice(("sdpa", "eager")),
    neutral="sdpa",
    leanest="sdpa",
    label="{} attention",
    numerics=Numerics.EXACT,
    transforms=(LOAD.do(_choose_kernel),),
    references=("Dao et al. 2022, arXiv:2205.14135", "Rabe and Staats 2021, arXiv:2112.05682"),
)
