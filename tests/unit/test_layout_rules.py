"""What stands against a layout is said before anything starts, with what to set instead."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import pytest

from autotune.core.companions import first_reason
from autotune.core.context import Context, ModelFacts
from autotune.core.domains import Value
from autotune.core.knob import Knob
from autotune.knobs import BUILTIN
from autotune.knobs.layouts import EXCLUSIONS, RANKS, layout_of
from autotune.knobs.stages import LayoutPlan

LLAMA = ModelFacts(family="llama", layers=8, heads=8, kv_heads=4, hidden=512, ffn=1024, vocab=1000)
AROUND = Context(model=LLAMA, global_batch=64, devices=8, sequence_length=128)


def reason(config: Mapping[str, Value], around: Context = AROUND) -> str | None:
    return first_reason(config, BUILTIN, around)


@pytest.mark.parametrize(
    "config",
    [
        {"layout.ranks": 8},
        {"layout.ranks": 8, "layout.data": "zero3", "layout.shards": 4},
        {"layout.ranks": 8, "layout.tensor": 4},
        {"layout.ranks": 8, "layout.tensor": 2, "layout.data": "zero2"},
        {"layout.ranks": 8, "layout.pipeline": 4, "accumulation": 4},
        {"layout.ranks": 8, "layout.context": 4, "layout.data": "zero1"},
        {"layout.ranks": 8, "layout.pipeline": 2, "accumulation": 8, "layout.schedule": "gpipe"},
    ],
    ids=str,
)
def test_what_can_be_laid_out(config: Mapping[str, Value]) -> None:
    assert reason(config) is None


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"layout.ranks": 16}, "--devices 16"),
        ({"layout.ranks": 8, "layout.tensor": 8}, "divides 4"),
        ({"layout.ranks": 8, "layout.tensor": 4, "prune.heads": 0.5}, "divides 2"),
        ({"layout.ranks": 4, "layout.pipeline": 4}, "accumulation to 4"),
        ({"layout.ranks": 4, "layout.pipeline": 4, "prune.layers": 0.75, "accumulation": 4},
         "layout.pipeline to 2"),
        ({"layout.ranks": 4, "layout.tensor": 4, "layout.pipeline": 2, "accumulation": 2},
         "multiple of 8"),
        ({"layout.ranks": 8, "accumulation": 16}, "cannot be shared"),
        ({"layout.data": "zero3"}, "layout.ranks above 1"),
        ({"layout.ranks": 4, "layout.tensor": 4, "layout.data": "zero3"}, "no ranks are left"),
        ({"layout.shards": 2}, "layout.data to zero3"),
        ({"layout.ranks": 8, "layout.data": "zero3", "layout.shards": 16}, "do not divide"),
        ({"layout.schedule": "gpipe"}, "layout.pipeline above 1"),
        ({"layout.ranks": 2, "layout.context": 2, "sequence_length": 0.25, "global_batch": 1.0},
         None),
        ({"layout.staleness": 2}, "layout.data to server"),
        ({"layout.servers": 2}, "layout.data to server"),
        ({"layout.ranks": 2, "layout.data": "server", "layout.servers": 2}, "layout.servers below"),
        ({"layout.ranks": 2, "compile": "partitioner"}, "compile to none"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_says_what_to_set(config: Mapping[str, Value], said: str | None) -> None:
    found = reason(config)
    if said is None:
        assert found is None
        return
    assert found is not None
    assert said in found


def test_sequences_must_divide() -> None:
    odd = replace(AROUND, sequence_length=126)
    found = reason({"layout.ranks": 4, "layout.context": 4}, odd)
    assert found is not None
    assert "126 tokens" in found


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("gpt2", {"layout.ranks": 2, "layout.tensor": 2}),
        ("t5", {"layout.ranks": 2, "layout.pipeline": 2, "accumulation": 2}),
        ("bert", {"layout.ranks": 2, "layout.context": 2}),
    ],
)
def test_families_that_cannot_be_cut(family: str, config: Mapping[str, Value]) -> None:
    found = reason(config, replace(AROUND, model=replace(LLAMA, family=family)))
    assert found is not None
    assert f"'{family}'" in found


def test_every_exclusion_is_reached_and_names_its_knob() -> None:
    layouts: list[dict[str, Value]] = [
        {"layout.ranks": 4},
        {"layout.ranks": 4, "layout.data": "zero3"},
        {"layout.ranks": 4, "layout.tensor": 2},
        {"layout.ranks": 4, "layout.pipeline": 2, "accumulation": 2},
        {"layout.ranks": 4, "layout.context": 2},
    ]
    values = {knob.name: knob.domain.grid() for knob in BUILTIN}
    for exclusion in EXCLUSIONS:
        refused = next(v for v in values[exclusion.knob] if v not in exclusion.allowed)
        said = [
            found
            for layout in layouts
            if exclusion.when(layout_of(replace(AROUND, config=layout)))
            and (found := reason({**layout, exclusion.knob: refused})) is not None
        ]
        assert said, exclusion.knob
        assert all(len(sentence.split()) > 5 for sentence in said)


COMPANY: dict[str, dict[str, Value]] = {
    "layout.ranks": {},
    "layout.data": {"layout.ranks": 9},
    "layout.shards": {"layout.ranks": 64, "layout.data": "zero3"},
    "layout.tensor": {"layout.ranks": 64},
    "layout.pipeline": {"layout.ranks": 64, "accumulation": 32},
    "layout.schedule": {"layout.ranks": 2, "layout.pipeline": 2, "accumulation": 2},
    "layout.context": {"layout.ranks": 64},
    "layout.servers": {"layout.ranks": 9, "layout.data": "server"},
    "layout.staleness": {"layout.ranks": 3, "layout.data": "server"},
}


@pytest.mark.parametrize(
    "choice",
    [(k, v) for k in BUILTIN if k.name in COMPANY for v in k.domain.grid() if v != k.neutral],
    ids=lambda choice: f"{choice[0].name}={choice[1]}",
)
def test_every_value_is_legal_somewhere(choice: tuple[Knob, Value]) -> None:
    knob, value = choice
    large = replace(LLAMA, layers=64, heads=64, kv_heads=64, ffn=4096)
    around = Context(model=large, global_batch=math.lcm(*RANKS), devices=1024, sequence_length=4096)
    assert reason({**COMPANY[knob.name], knob.name: value}, around) is None


def test_replicas_are_what_other_dimensions_leave() -> None:
    assert LayoutPlan(ranks=16, tensor=2, pipeline=4).replicas == 2
    assert LayoutPlan(ranks=4, data="server").replicas == 3
    assert LayoutPlan(ranks=4, data="zero3").sharded
    assert not LayoutPlan(ranks=4, data="zero1").sharded
