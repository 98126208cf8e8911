"""When texts become tokens: once and for all trials, or every time that a batch needs them.

Prepared tokens take four bytes each in the memory of every trial. Made when they are needed, they
take none: texts are read from their file, a few at a time. The tokenizer has to stay in memory in
their place, so this pays for large data only, and costs time in every step.
"""

from __future__ import annotations

from dataclasses import replace

from autotune.core.domains import Choice
from autotune.core.knob import Knob, Numerics
from autotune.knobs.features import needs_feature
from autotune.knobs.stages import DATA, DataPlan


def _make_when_needed(plan: DataPlan, value: str) -> DataPlan:
    return replace(plan, on_the_fly=True)


TOKENISATION = Knob(
    name="data.tokens",
    help="Keeps the tokens of all texts (cached), or makes those of a batch from its texts when it "
    "is needed (on_the_fly), which saves memory where data is large and costs time.",
    domain=Choice(("cached", "on_the_fly")),
    neutral="cached",
    leanest="on_the_fly",
    label="tokens {}",
    numerics=Numerics.EXACT,
    transforms=(DATA.do(_make_when_needed),),
    blocked=needs_feature(
        "on_the_fly",
        neutral="cached",
        reason="this objective cannot make the tokens of a batch from its texts alone, or its "
        "documents are too long for it: set data.tokens to cached",
    ),
)
