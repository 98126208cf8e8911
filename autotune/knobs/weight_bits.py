"""Frozen weights in few bits: every linear layer of the blocks, packed (`knobs/packed.py`).

Packed weights need no gradients and no optimizer states, and do not train: adapters on them do, so
the rule `frozen-weights-train-adapters` asks for `lora.rank` above 0. The output layer and the
embeddings stay as loaded. Deploying makes the weights dense again, so that plain transformers loads
them; their values stay rounded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from autotune.core.context import Context
from autotune.core.domains import Choice
from autotune.core.knob import Knob, Numerics
from autotune.knobs.architectures import RECURRENT
from autotune.knobs.stages import ADAPT, DEPLOY, on_model

if TYPE_CHECKING:
    from torch import nn


def reason_against_bits(knob: str, context: Context) -> str | None:
    """Return why the weights of a model's blocks cannot be quantised, or None.

    Args:
        knob: Which knob would do it.
        context: Has the model.
    """
    family = context.model.family
    if family not in RECURRENT:
        return None
    return (
        f"models of the family '{family}' have no blocks whose weights could be quantised: "
        f"set {knob} to 16"
    )


def _pack(model: nn.Module, value: int) -> nn.Module:
    from autotune.knobs.packed import pack_blocks

    return pack_blocks(model, value)


def _unpack(model: nn.Module, value: int) -> nn.Module:
    from autotune.knobs.packed import unpack_model

    return unpack_model(model)


def _needs_blocks(value: int, context: Context) -> str | None:
    return None if value == 16 else reason_against_bits("weight_bits", context)


WEIGHT_BITS = Knob(
    name="weight_bits",
    help="Bits per frozen weight of the blocks; below 16 they are packed and do not train, so "
    "lora.rank must be above 0.",
    domain=Choice((16, 8, 6, 5, 4, 3, 2)),
    neutral=16,
    leanest=2,
    label="{}-bit weights",
    numerics=Numerics.LOSSY,
    transforms=(ADAPT.do(on_model(_pack)), DEPLOY.do(_unpack)),
    blocked=_needs_blocks,
    references=("Dettmers et al. 2023, arXiv:2305.14314",),
)
