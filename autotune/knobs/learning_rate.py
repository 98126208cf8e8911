"""The learning rate, as a factor on the default of the chosen optimizer.

A lossy knob (fewer weights, adapters, another optimizer) moves the best rate; judging it at the
baseline's rate alone would blame the knob for the rate.
"""

from __future__ import annotations

from dataclasses import replace

from autotune.core.domains import Choice
from autotune.core.knob import Knob, Numerics
from autotune.knobs.stages import OPTIMISE, OptimPlan


def _scale_rate(plan: OptimPlan, value: float) -> OptimPlan:
    return replace(plan, rate_scale=plan.rate_scale * value)


LEARNING_RATE = Knob(
    name="learning_rate",
    help="Factor on the optimizer's default learning rate; costs no memory.",
    domain=Choice((0.1, 0.3, 1.0, 3.0, 10.0)),
    neutral=1.0,
    leanest=1.0,
    label="lr ×{}",
    numerics=Numerics.LOSSY,
    transforms=(OPTIMISE.do(_scale_rate),),
)
