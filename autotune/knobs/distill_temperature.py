"""How soft the teacher's answers are: at a higher temperature, unlikely classes count for more."""

from __future__ import annotations

from dataclasses import replace

from autotune.core.context import Context
from autotune.core.domains import Choice
from autotune.core.errors import BadValue
from autotune.core.knob import Knob, Numerics
from autotune.knobs.stages import ADAPT, Adaptation


def _heat(state: Adaptation, value: float) -> Adaptation:
    if state.distillation is None or state.distillation.of != "logits":
        raise BadValue("distill.temperature needs a teacher's logits", help="set distill to logits")
    return replace(state, distillation=replace(state.distillation, temperature=value))


def _needs_logits(value: float, context: Context) -> str | None:
    if value == 2.0 or context.config.get("distill", "none") == "logits":
        return None
    return (
        "only the logits of a teacher have a temperature: set distill to logits, or "
        "distill.temperature to 2.0"
    )


DISTILL_TEMPERATURE = Knob(
    name="distill.temperature",
    help="Divides the logits of teacher and student before they are compared; higher shows more "
    "of what the teacher thinks of the wrong answers.",
    domain=Choice((1.0, 2.0, 4.0)),
    neutral=2.0,
    leanest=2.0,
    label="temperature {}",
    numerics=Numerics.LOSSY,
    transforms=(ADAPT.do(_heat),),
    blocked=_needs_logits,
    references=("Hinton et al. 2015, arXiv:1503.02531",),
)
