"""Spaces: what is legal in a context, the smallest configuration, counting, `--set`."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.core.config import Config
from autotune.core.context import Context
from autotune.core.domains import Choice, Float, Int
from autotune.core.errors import BadValue, UnknownName
from autotune.core.rules import RULES, Rule
from autotune.core.space import Space
from tests.knobs import BITS, CHECKPOINTING, CHUNKS, KNOBS, RANK, RATE, SHARE

CONTEXT = Context()


def space(*knobs, rules=RULES, **domains):
    listed = {knob.name: knob.domain for knob in knobs} | domains
    ordered = {knob.name: listed[knob.name] for knob in KNOBS if knob.name in listed}
    return Space(name="mine", knobs=KNOBS, domains=ordered, rules=rules)


FOUR = space(SHARE, CHECKPOINTING, BITS, RANK)


def test_a_legal_configuration_has_no_reasons_against_it():
    config = Config({"lora.rank": 8, "weight_bits": 4}, KNOBS)
    assert FOUR.reasons(config, CONTEXT) == ()
    assert FOUR.legal(config, CONTEXT)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"chunks": 2}, "chunks=2: space 'mine' does not list this knob"),
        ({"colour": "red"}, "colour: there is no knob of that name"),
        ({"weight_bits": 2, "lora.rank": 4}, "weight_bits=2: space 'mine' allows 16, 8, 4"),
        (
            {"share": 0.75, "checkpointing": "full"},
            "share=0.75: cannot be combined with checkpointing=full",
        ),
        ({"weight_bits": 8}, RULES[0].reason),
    ],
)
def test_each_kind_of_objection_is_a_sentence(values, reason):
    config = Config(values, KNOBS)
    assert FOUR.reasons(config, CONTEXT) == (reason,)
    assert not FOUR.legal(config, CONTEXT)


def test_every_objection_is_listed():
    config = Config({"weight_bits": 8, "share": 0.75, "checkpointing": "full"}, KNOBS)
    assert len(FOUR.reasons(config, CONTEXT)) == 2


def test_the_baseline_is_neutral_unless_the_space_excludes_that():
    assert FOUR.baseline() == Config({})
    fixed = space(SHARE, **{"lora.rank": Choice((8, 4)), "weight_bits": Choice((16, 4))})
    assert fixed.baseline() == Config({"lora.rank": 8})


def test_the_smallest_configuration_sets_what_needs_another_knob_first():
    smallest = FOUR.smallest(CONTEXT)
    assert FOUR.legal(smallest, CONTEXT)
    assert smallest["weight_bits"] == 4
    assert smallest["lora.rank"] == 4
    # share 0.75 and full checkpointing exclude each other: one is lean, the other next to it
    assert (smallest["share"], smallest["checkpointing"]) in {(0.75, "every_other"), (0.5, "full")}


def test_the_smallest_configuration_takes_what_is_next_to_the_leanest_value():
    narrow = space(share=Choice((0.0, 0.25)), chunks=Int(2, 8), rate=Float(2.0, 4.0))
    assert narrow.smallest(CONTEXT) == Config({"share": 0.25, "chunks": 8, "rate": 2.0}, KNOBS)


def test_the_smallest_configuration_leaves_an_illegal_baseline():
    rule = Rule(name="r", holds=lambda context: context.config["lora.rank"] > 0, reason="no rank")
    assert space(RANK, rules=(rule,)).smallest(CONTEXT) == Config({"lora.rank": 4})


def test_size_counts_combinations_and_count_the_legal_ones():
    assert FOUR.size == 4 * 3 * 3 * 4
    legal = list(FOUR.enumerate(CONTEXT))
    assert FOUR.count(CONTEXT) == len(legal) == len(set(legal))
    # bits below 16 without a rank: 2 of 12; share 0.75 with full checkpointing: 1 of 12
    assert len(legal) == (12 - 2) * (12 - 1)


def test_ranges_of_reals_are_not_counted_but_enumerated_on_a_grid():
    continuous = space(RATE)
    assert continuous.size is None
    assert continuous.count(CONTEXT) is None
    assert len(list(continuous.enumerate(CONTEXT))) == len(RATE.domain.grid())


def test_huge_spaces_are_not_counted():
    assert space(CHUNKS, rate=Int(1, 200_000)).count(CONTEXT) is None


def test_blocked_values_are_those_that_are_illegal_alone():
    assert FOUR.blocked_values(CONTEXT) == {"weight_bits": {8: RULES[0].reason, 4: RULES[0].reason}}
    full = space(SHARE, checkpointing=Choice(("full",)))
    sentence = "cannot be combined with checkpointing=full"
    assert full.blocked_values(CONTEXT)["share"] == {0.75: sentence}


def test_set_narrows_listed_knobs_and_adds_others_in_order():
    narrow = FOUR.narrowed({"chunks": "4", "lora.rank": "8, 4,8"})
    assert list(narrow.domains) == ["share", "checkpointing", "weight_bits", "lora.rank", "chunks"]
    assert narrow.domains["lora.rank"] == Choice((8, 4))
    assert narrow.domains["chunks"] == Choice((4,))
    assert narrow.baseline() == Config({"lora.rank": 8, "chunks": 4})
    assert FOUR.narrowed({}) == FOUR


def test_set_of_an_unknown_knob_suggests_one():
    with pytest.raises(UnknownName) as caught:
        FOUR.narrowed({"checkpoiting": "full"})
    assert caught.value.message == "unknown knob 'checkpoiting'"
    assert caught.value.help == "did you mean 'checkpointing'?  `autotune spaces knobs` lists all 6"


@pytest.mark.parametrize("text", ["half", "", "none,", "none full"])
def test_set_outside_the_domain_names_the_domain(text):
    with pytest.raises(BadValue) as caught:
        FOUR.narrowed({"checkpointing": text})
    assert "it may be none, every_other, full" in caught.value.message
    assert caught.value.where == f"--set checkpointing={text.split(',')[-1].strip()}"
    assert caught.value.help == "`autotune spaces knobs checkpointing` explains it"


def test_set_outside_what_the_space_allows_says_so():
    narrow = FOUR.narrowed({"lora.rank": "4,8"})
    with pytest.raises(BadValue) as caught:
        narrow.narrowed({"lora.rank": "16"})
    assert caught.value.message == "space 'mine' narrows lora.rank to 4, 8, without 16"


@settings(max_examples=50)
@given(st.data())
def test_the_smallest_of_any_narrowed_space_lies_in_it(data):
    chosen = {
        knob.name: ",".join(
            str(v)
            for v in data.draw(
                st.lists(st.sampled_from(knob.domain.grid()), min_size=1, max_size=3, unique=True)
            )
        )
        for knob in (SHARE, CHECKPOINTING, RANK)
    }
    narrow = FOUR.narrowed(chosen)
    smallest = narrow.smallest(CONTEXT)
    assert narrow.legal(smallest, CONTEXT) or narrow.count(CONTEXT) == 0
