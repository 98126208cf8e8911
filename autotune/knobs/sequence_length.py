"""Training on shorter sequences than the model is evaluated on.

Activations grow with the length, those of eager attention with its square. A language model is
trained on shorter blocks, a classifier on texts that are cut earlier; the number of sequences stays
as it is, so fewer tokens are seen. The evaluation is at full length, and shows what that costs.
"""

from __future__ import annotations

from dataclasses import replace

from autotune.core.context import Context
from autotune.core.domains import Choice
from autotune.core.knob import Knob, Numerics
from autotune.knobs.stages import DATA, DataPlan

MULTIPLE = 8
"""Lengths are multiples of it: matrix products are fast there, and fp16 ones need it."""


def shortened(length: int, share: float) -> int:
    """Return a share of a length in tokens, rounded down to a multiple of 8, but at least 8."""
    return min(length, max(MULTIPLE, int(length * share) // MULTIPLE * MULTIPLE))


def _shorten(plan: DataPlan, value: float) -> DataPlan:
    return replace(plan, sequence_length=shortened(plan.sequence_length, value))


def _needs_sequences(value: float, context: Context) -> str | None:
    if value == 1.0 or "fixed_length" not in context.features:
        return None
    return (
        "the inputs of this objective have one size, and cannot be cut shorter: "
        "set sequence_length to 1.0"
    )


SEQUENCE_LENGTH = Knob(
    name="sequence_length",
    help="Share of the sequence length that is trained on, rounded down to a multiple of 8; "
    "the evaluation stays at full length.",
    domain=Choice((1.0, 0.75, 0.5, 0.25)),
    neutral=1.0,
    leanest=0.25,
    label="length ×{}",
    numerics=Numerics.LOSSY,
    transforms=(DATA.do(_shorten),),
    blocked=_needs_sequences,
    references=("Press et al. 2020, arXiv:2012.15832",),
)
