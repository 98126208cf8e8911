"""Structured pruning of recurrent layers: fewer hidden units in LSTMs and GRUs.

A recurrent layer grows with the square of its hidden size, and keeps its gates for every token. The
least important units go (`prune.importance`), before training or while it goes on
(`prune.schedule`).
"""

from __future__ import annotations

from autotune.core.context import Context
from autotune.core.domains import Choice
from autotune.core.knob import Knob, Numerics
from autotune.knobs.architectures import RECURRENT, kept_width
from autotune.knobs.stages import ADAPT, Adaptation


def _prune(state: Adaptation, value: float) -> Adaptation:
    from autotune.knobs.pruning import prune_units
    from autotune.knobs.recurrence import RECURRENT_UNITS

    prune_units(state, RECURRENT_UNITS, value)
    return state


def _needs_recurrence(value: float, context: Context) -> str | None:
    model = context.model
    if value == 0.0 or not model.family:
        return None
    if model.family not in RECURRENT:
        return (
            f"models of the family '{model.family}' have no recurrent layers: set prune.recurrent "
            "to 0.0"
        )
    if model.hidden and kept_width(model.hidden, value) == model.hidden:
        return (
            f"prune.recurrent {value:g} cuts none of {model.hidden} hidden units, since what stays "
            "is rounded: set prune.recurrent to another share, or to 0.0"
        )
    return None


PRUNE_RECURRENT = Knob(
    name="prune.recurrent",
    help="Share of the hidden units that is cut out of every recurrent layer of an LSTM or GRU.",
    domain=Choice((0.0, 0.25, 0.5, 0.75)),
    neutral=0.0,
    leanest=0.75,
    label="prune recurrent {}",
    numerics=Numerics.LOSSY,
    transforms=(ADAPT.do(_prune),),
    blocked=_needs_recurrence,
    references=("Wen et al. 2017, arXiv:1709.05027",),
)
