"""How documents become sequences: packed into one stream, or each with rows of its own.

In a stream every position trains and a sequence may hold the end of one document and the beginning
of the next. Rows of one document each keep documents apart, at the price of padding that takes
memory and trains nothing.
"""

from __future__ import annotations

from dataclasses import replace

from autotune.core.domains import Choice
from autotune.core.knob import Knob, Numerics
from autotune.knobs.features import needs_feature
from autotune.knobs.stages import DATA, DataPlan


def _separate(plan: DataPlan, value: str) -> DataPlan:
    return replace(plan, documents=True)


PACKING = Knob(
    name="data.packing",
    help="Trains a language model on one stream of all documents, without padding, or on rows of "
    "one document each, so that no token sees another document.",
    domain=Choice(("stream", "documents")),
    neutral="stream",
    leanest="stream",
    label="packed {}",
    numerics=Numerics.LOSSY,
    transforms=(DATA.do(_separate),),
    blocked=needs_feature(
        "documents",
        neutral="stream",
        reason="this objective does not cut its sequences out of a stream of documents: "
        "set data.packing to stream",
    ),
    references=("Raffel et al. 2020, arXiv:1910.10683", "Ding et al. 2024, arXiv:2404.10830"),
)
