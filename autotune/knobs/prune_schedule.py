"""When pruning happens: all of it before training, or little by little while training goes on.

With `gradual`, a model loses few units at a time and adjusts to each loss: most go early, the last
at 80 % of the training (`knobs/gradual.py`). Only the evaluated and deployed model is smaller:
training starts from the whole model and takes its memory.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from autotune.core.context import Context
from autotune.core.domains import Choice
from autotune.core.knob import Knob, Numerics
from autotune.knobs.stages import ADAPT, COMPRESS, STEP, Adaptation, StepPlan

if TYPE_CHECKING:
    from torch import nn

GROWS = ("prune.ffn", "prune.heads", "prune.layers", "prune.recurrent", "prune.unstructured")
"""Knobs whose share can grow while training."""


def _while_training(state: Adaptation, value: str) -> Adaptation:
    return replace(state, gradual=True)


def _after_steps(plan: StepPlan, value: str) -> StepPlan:
    from autotune.knobs.gradual import thin_out

    return replace(plan, after_step=(*plan.after_step, thin_out))


def _cut(model: nn.Module, value: str) -> nn.Module:
    from autotune.knobs.gradual import cut_doomed

    return cut_doomed(model)


def _needs_weights_that_train(value: str, context: Context) -> str | None:
    config = context.config
    if value == "start":
        return None
    if not any(config.get(name, 0.0) for name in GROWS):
        return (
            "nothing is pruned that could be pruned little by little: set prune.schedule to start, "
            f"or one of {', '.join(GROWS)} above 0.0"
        )
    if config.get("lora.rank", 0):
        return (
            "adapters freeze the weights and add to what is silenced, so units cannot go little "
            "by little: set prune.schedule to start, or lora.rank to 0"
        )
    for name in ("weight_bits", "qat.bits"):
        if config.get(name, 16) != 16:
            return (
                "weights in few bits cannot be silenced one by one while they train: set "
                f"prune.schedule to start, or {name} to 16"
            )
    if config.get("prune.layers", 0.0) and config.get("compile", "none") != "none":
        return (
            "every block that falls silent makes a compiled model compile again: set "
            "prune.schedule to start, compile to none, or prune.layers to 0.0"
        )
    return None


PRUNE_SCHEDULE = Knob(
    name="prune.schedule",
    help="Prunes all at the start, or little by little over the first 80 % of the training "
    "(gradual), which is gentler but takes the training memory of the whole model.",
    domain=Choice(("start", "gradual")),
    neutral="start",
    leanest="start",
    label="pruned {}",
    numerics=Numerics.LOSSY,
    transforms=(ADAPT.do(_while_training), STEP.do(_after_steps), COMPRESS.do(_cut)),
    blocked=_needs_weights_that_train,
    references=("Zhu and Gupta 2017, arXiv:1710.01878",),
)
"""Comes before the knobs that prune: it cuts, before they forget their masks."""
