"""How much the teacher counts: its share in the loss, the rest being the labels'."""

from __future__ import annotations

from dataclasses import replace

from autotune.core.context import Context
from autotune.core.domains import Choice
from autotune.core.errors import BadValue
from autotune.core.knob import Knob, Numerics
from autotune.knobs.stages import ADAPT, Adaptation


def _weigh(state: Adaptation, value: float) -> Adaptation:
    if state.distillation is None:
        raise BadValue("distill.weight has no teacher to weigh", help="set distill to logits")
    return replace(state, distillation=replace(state.distillation, weight=value))


def _needs_a_teacher(value: float, context: Context) -> str | None:
    if value == 0.5 or context.config.get("distill", "none") != "none":
        return None
    return "there is no teacher to weigh: set distill to logits or hidden, or distill.weight to 0.5"


DISTILL_WEIGHT = Knob(
    name="distill.weight",
    help="Share of the teacher in the loss; higher where labels are few or noisy.",
    domain=Choice((0.25, 0.5, 0.75, 0.9)),
    neutral=0.5,
    leanest=0.5,
    label="teacher {}",
    numerics=Numerics.LOSSY,
    transforms=(ADAPT.do(_weigh),),
    blocked=_needs_a_teacher,
    references=("Hinton et al. 2015, arXiv:1503.02531",),
)
