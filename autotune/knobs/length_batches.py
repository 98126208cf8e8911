"""Batches of texts of similar length, each as wide as its longest text.

With batches of one width, a short text costs as much as the longest. Sorted by length, most batches
are narrow, so training is faster; the peak is that of the longest batch and falls only if no text
is as long as the sequence length. Peaks are measured on batches of the longest texts, which come
first.
"""

from __future__ import annotations

from dataclasses import replace

from autotune.core.domains import Choice
from autotune.core.knob import Knob, Numerics
from autotune.knobs.features import needs_feature
from autotune.knobs.stages import DATA, DataPlan


def _sort(plan: DataPlan, value: str) -> DataPlan:
    return replace(plan, by_length=True)


LENGTH_BATCHES = Knob(
    name="data.by_length",
    help="Puts texts of similar length into one batch, as wide as its longest text; use it when "
    "texts differ in length, for speed and, if none is as long as the limit, for memory.",
    domain=Choice(("no", "yes")),
    neutral="no",
    leanest="yes",
    label="by length {}",
    numerics=Numerics.LOSSY,
    transforms=(DATA.do(_sort),),
    blocked=needs_feature(
        "by_length",
        neutral="no",
        reason="the sequences of this objective are all of one length, so there is nothing to "
        "sort: set data.by_length to no",
    ),
    references=("Khomenko et al. 2017, arXiv:1708.05604",),
)
