"""Learning from a teacher as well as from labels: what it says, or what it thinks.

The teacher is the model as it was loaded, before anything is cut or rounded, unless the user names
another one. `knobs/distillation.py` does the comparing. This knob comes before all that change the
model, so that it can keep a copy of it.

It never saves memory: the teacher's weights stay, and its answers are held beside the student's. It
is for what cheaper techniques lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace

from autotune.core.context import Context
from autotune.core.domains import Choice, Value
from autotune.core.knob import Knob, Numerics
from autotune.knobs.architectures import RECURRENT
from autotune.knobs.stages import ADAPT, Adaptation

HOW_TO_PRUNE = frozenset({"prune.importance", "prune.schedule"})
"""Knobs of pruning that take nothing away themselves."""


def _keep_teacher(state: Adaptation, value: str) -> Adaptation:
    from autotune.knobs.distillation import Distillation

    teacher = deepcopy(state.model) if state.named_teacher is None else state.named_teacher()
    teacher = teacher.eval().requires_grad_(False)
    return replace(state, distillation=Distillation(teacher=teacher, of=value))


def _needs_a_better_teacher(value: str, context: Context) -> str | None:
    if value == "none":
        return None
    return _cannot_compare(value, context) or _knows_no_more(context)


def _cannot_compare(value: str, context: Context) -> str | None:
    if value == "logits" and context.config.get("loss_chunks", 1) != 1:
        return (
            "a loss in pieces never has the logits that a teacher's would be compared with: "
            "set loss_chunks to 1, or distill to hidden"
        )
    family = context.model.family
    if value == "hidden" and family in RECURRENT:
        return (
            f"recurrent models, such as those of the family '{family}', do not give their hidden "
            "states: set distill to logits"
        )
    return None


def _knows_no_more(context: Context) -> str | None:
    if "teacher" in context.features:
        return None
    if context.model.family and not context.model.pretrained:
        return (
            "the model is trained from scratch, and a copy of random weights teaches nothing: "
            "name a teacher, or set distill to none"
        )
    if not _loses_something(context.config):
        return (
            "the teacher would be the model itself, with nothing lost that it could give back: set "
            "prune.ffn, prune.heads or lora.rank above 0, or distill to none, or name a teacher"
        )
    return None


def _loses_something(config: Mapping[str, Value]) -> bool:
    pruned = any(
        name.startswith("prune.") and name not in HOW_TO_PRUNE and value not in (0, "none")
        for name, value in config.items()
    )
    rounded = any(config.get(name, 16) != 16 for name in ("weight_bits", "qat.bits"))
    return pruned or rounded or bool(config.get("lora.rank", 0))


DISTILL = Knob(
    name="distill",
    help="Also learns from a teacher, the model before pruning or quantisation or one that is "
    "named: its logits, or its last hidden states; needs memory for the teacher and its answers.",
    domain=Choice(("none", "logits", "hidden")),
    neutral="none",
    leanest="none",
    label="distill {}",
    numerics=Numerics.LOSSY,
    transforms=(ADAPT.do(_keep_teacher),),
    blocked=_needs_a_better_teacher,
    references=("Hinton et al. 2015, arXiv:1503.02531", "Jiao et al. 2019, arXiv:1909.10351"),
)
