"""What decides which units and blocks are pruned: their weights, or what they do to the data.

Magnitude needs no data. The two others run a few training batches first (`knobs/importance.py`),
forward for activations and backward too for the loss, before anything is pruned.
"""

from __future__ import annotations

from dataclasses import replace

from autotune.core.context import Context
from autotune.core.domains import Choice
from autotune.core.knob import Knob, Numerics
from autotune.knobs.stages import ADAPT, Adaptation

MEASURED = ("prune.ffn", "prune.heads", "prune.layers", "prune.recurrent")
"""Knobs that prune what importance is measured of: whole units and blocks."""


def _choose(state: Adaptation, value: str) -> Adaptation:
    return replace(state, importance=value)


def _needs_pruning(value: str, context: Context) -> str | None:
    if value == "magnitude" or any(context.config.get(name, 0.0) for name in MEASURED):
        return None
    return (
        "no unit or block is pruned, so nothing depends on how important it is: set "
        f"prune.importance to magnitude, or one of {', '.join(MEASURED)} above 0.0"
    )


PRUNE_IMPORTANCE = Knob(
    name="prune.importance",
    help="What decides which units and blocks go: the magnitude of their weights, the change of "
    "the loss without them (taylor), or what they do to a few batches (activation).",
    domain=Choice(("magnitude", "taylor", "activation")),
    neutral="magnitude",
    leanest="magnitude",
    label="by {}",
    numerics=Numerics.LOSSY,
    transforms=(ADAPT.do(_choose),),
    blocked=_needs_pruning,
    references=(
        "Molchanov et al. 2019, arXiv:1906.10771",
        "Michel et al. 2019, arXiv:1905.10650",
        "Men et al. 2024, arXiv:2403.03853",
    ),
)
