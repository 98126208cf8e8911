"""Unstructured pruning: the smallest weights of every matrix of the blocks are zero, and stay so.

It says what sparsity costs in accuracy; dense kernels gain nothing from it. While training it needs
one byte more for each weight of the blocks, for the masks (`knobs/masks.py`), and a deployed model
is dense, with zeros in it, which a compressed file stores in fewer bytes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from autotune.core.context import Context
from autotune.core.domains import Choice
from autotune.core.knob import Knob, Numerics
from autotune.knobs.architectures import RECURRENT
from autotune.knobs.stages import ADAPT, COMPRESS, STEP, Adaptation, StepPlan

if TYPE_CHECKING:
    from torch import nn


def reason_against_masks(knob: str, neutral: str, context: Context) -> str | None:
    """Return why single weights cannot be held at zero, or None.

    Args:
        knob: Which knob would do it.
        neutral: Its neutral value, as it is typed.
        context: The configuration and the model.
    """
    if context.model.family in RECURRENT:
        return (
            f"models of the family '{context.model.family}' have no blocks whose weights could be "
            f"masked: set {knob} to {neutral}"
        )
    if context.config.get("lora.rank", 0):
        return (
            "adapters are added to the weights at the end, and would fill the zeros again: set "
            f"{knob} to {neutral}, or lora.rank to 0"
        )
    for name in ("weight_bits", "qat.bits", "deploy.bits"):
        if context.config.get(name, 16) != 16:
            return (
                "rounding to few bits moves zeros off zero, so the weights would not stay sparse: "
                f"set {knob} to {neutral}, or {name} to 16"
            )
    return None


def hold_zeros(plan: StepPlan, value: object) -> StepPlan:
    """Have masked weights set to zero again after every optimizer step."""
    from autotune.knobs.masks import keep_zeros

    return replace(plan, after_step=(*plan.after_step, keep_zeros))


def _mask(state: Adaptation, value: float) -> Adaptation:
    from autotune.knobs.masks import mask_share

    mask_share(state.model, value, gradual=state.gradual)
    return state


def _forget(model: nn.Module, value: float) -> nn.Module:
    from autotune.knobs.masks import remove_masks

    return remove_masks(model)


def _blocked(value: float, context: Context) -> str | None:
    return None if value == 0.0 else reason_against_masks("prune.unstructured", "0.0", context)


PRUNE_UNSTRUCTURED = Knob(
    name="prune.unstructured",
    help="Share of single weights in every matrix of the blocks that is zero; saves no memory, and "
    "costs one byte a weight while training: use it to see what sparsity does to accuracy.",
    domain=Choice((0.0, 0.5, 0.7, 0.9)),
    neutral=0.0,
    leanest=0.0,
    label="{} of weights zero",
    numerics=Numerics.LOSSY,
    transforms=(ADAPT.do(_mask), STEP.do(hold_zeros), COMPRESS.do(_forget)),
    blocked=_blocked,
    references=("Han et al. 2015, arXiv:1506.02626", "Zhu and Gupta 2017, arXiv:1710.01878"),
)
