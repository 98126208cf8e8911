"""Structured pruning of feed-forward layers: fewer inner units in every block.

Two thirds of a transformer's weights are in its feed-forward layers. The least important units go
(`prune.importance`): before training, which then makes up for part of the loss, or little by little
while it goes on (`prune.schedule`).
"""

from __future__ import annotations

from autotune.core.context import Context
from autotune.core.domains import Choice
from autotune.core.knob import Knob, Numerics
from autotune.knobs.architectures import FEED_FORWARD
from autotune.knobs.stages import ADAPT, Adaptation


def _prune(state: Adaptation, value: float) -> Adaptation:
    from autotune.knobs.pruning import prune_units
    from autotune.knobs.surgery import FEED_FORWARDS

    prune_units(state, FEED_FORWARDS, value)
    return state


def _needs_known_family(value: float, context: Context) -> str | None:
    family = context.model.family
    if value == 0.0 or not family or family in FEED_FORWARD:
        return None
    return (
        f"the feed-forward layers of the family '{family}' are not known: set prune.ffn to 0.0 "
        f"(known: {', '.join(sorted(FEED_FORWARD))})"
    )


PRUNE_FFN = Knob(
    name="prune.ffn",
    help="Share of the feed-forward units that is cut out of every block.",
    domain=Choice((0.0, 0.25, 0.5, 0.75)),
    neutral=0.0,
    leanest=0.75,
    label="prune ffn {}",
    numerics=Numerics.LOSSY,
    transforms=(ADAPT.do(_prune),),
    blocked=_needs_known_family,
    references=("Li et al. 2017, arXiv:1608.08710", "Ma et al. 2023, arXiv:2305.11627"),
)
