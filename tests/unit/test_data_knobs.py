"""Knobs over how batches are made: what they set, and where an objective has no use for them."""

from __future__ import annotations

import pytest

from autotune.core.context import Context, ModelFacts
from autotune.core.knob import Knob, Numerics, run_stage
from autotune.knobs.data_mapping import DATA_MAPPING
from autotune.knobs.length_batches import LENGTH_BATCHES
from autotune.knobs.packing import PACKING
from autotune.knobs.stages import DATA, DataPlan
from autotune.knobs.tokenisation import TOKENISATION

KNOBS = {
    "by_length": LENGTH_BATCHES,
    "documents": PACKING,
    "on_the_fly": TOKENISATION,
    "memory_map": DATA_MAPPING,
}
PLAN = DataPlan(sequence_length=16, global_batch=4)
BERT = ModelFacts(family="bert")


def other(knob: Knob) -> object:
    """The value that is not neutral: each of these knobs has two."""
    (value,) = set(knob.domain.grid()) - {knob.neutral}
    return value


@pytest.mark.parametrize(("word", "knob"), KNOBS.items())
def test_each_sets_one_field_of_the_plan(word: str, knob: Knob) -> None:
    assert run_stage(DATA, PLAN, (knob,), {knob.name: knob.neutral}) == PLAN
    changed = run_stage(DATA, PLAN, (knob,), {knob.name: other(knob)})
    fields = {name: getattr(changed, name) for name in KNOBS}
    assert fields == {name: name == word for name in KNOBS}
    assert (changed.sequence_length, changed.global_batch) == (16, 4)


def test_together_they_set_all_of_them() -> None:
    config = {knob.name: other(knob) for knob in KNOBS.values()}
    plan = run_stage(DATA, PLAN, KNOBS.values(), config)
    assert all(getattr(plan, word) for word in KNOBS)


@pytest.mark.parametrize(("word", "knob"), KNOBS.items())
def test_an_objective_without_a_use_for_it_blocks_it(word: str, knob: Knob) -> None:
    others = frozenset(KNOBS) - {word}
    reason = knob.blocked(other(knob), Context(features=others, model=BERT))
    assert f"set {knob.name} to {knob.neutral}" in str(reason)
    assert len(str(reason).split()) > 5
    assert knob.blocked(other(knob), Context(features=frozenset(), model=BERT)) == reason
    assert knob.blocked(other(knob), Context(features=frozenset({word}), model=BERT)) is None
    assert knob.blocked(knob.neutral, Context(features=others, model=BERT)) is None
    assert knob.blocked(other(knob), Context()) is None  # nothing is known of the objective


def test_only_what_changes_batches_is_lossy() -> None:
    lossy = {word for word, knob in KNOBS.items() if knob.numerics is Numerics.LOSSY}
    exact = {word for word, knob in KNOBS.items() if knob.numerics is Numerics.EXACT}
    assert (lossy, exact) == ({"by_length", "documents"}, {"on_the_fly", "memory_map"})
