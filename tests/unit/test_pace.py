"""Predicted time: what must be faster or slower than what, whatever the rates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from autotune.core.config import Config
from autotune.core.context import Context, Device, ModelFacts
from autotune.core.domains import Value
from autotune.core.errors import AutotuneError
from autotune.core.space import Space
from autotune.estimate import every_value
from autotune.knobs import BUILTIN
from autotune.knobs.stages import DataPlan
from autotune.memory.calibrate import Interval
from autotune.memory.predict import Estimate
from autotune.memory.rehearsal import Rehearsal
from autotune.parallel.layouts import holds_as_much, least_bytes, legal_layouts
from autotune.parallel.pace import Work, pace_of
from autotune.parallel.planning import plan_layouts
from autotune.parallel.rates import CARDS, UNKNOWN, rates_of
from autotune.runners.device_table import DEVICES

MODEL = ModelFacts(
    family="llama", layers=32, heads=32, kv_heads=8, hidden=4096, ffn=14336, vocab=128000,
    parameters=8_000_000_000,
)  # fmt: skip
WORK = Work(model=MODEL, global_batch=64, tokens=2048)
CARD = CARDS["A100-80GB"]
BF16: dict[str, Value] = {"precision": "bf16"}


def seconds(**layout: Value) -> float:
    config = {**BF16, **{name.replace("_", ".", 1): value for name, value in layout.items()}}
    return pace_of(config, WORK, CARD).seconds


def test_more_ranks_are_faster_but_not_by_as_much() -> None:
    alone, eight = seconds(), seconds(layout_ranks=8)
    assert alone / 8 < eight < alone


def test_what_is_divided_more_is_exchanged_more() -> None:
    paces = [
        pace_of({**BF16, "layout.ranks": 8, "layout.data": data}, WORK, CARD)
        for data in ("zero2", "zero3")
    ]
    assert paces[0].exchange < paces[1].exchange
    assert paces[0].compute == paces[1].compute


def test_a_pipeline_waits_its_share() -> None:
    pace = pace_of({**BF16, "layout.ranks": 4, "layout.pipeline": 4, "accumulation": 8}, WORK, CARD)
    assert pace.bubble == pytest.approx(pace.compute * 3 / 8)
    longer = pace_of(
        {**BF16, "layout.ranks": 4, "layout.pipeline": 4, "accumulation": 16}, WORK, CARD
    )
    assert longer.bubble < pace.bubble


def test_recomputation_costs_a_forward_pass() -> None:
    plain, again = pace_of(BF16, WORK, CARD), pace_of({**BF16, "checkpointing": "full"}, WORK, CARD)
    assert again.compute == pytest.approx(plain.compute * 4 / 3)


def test_across_machines_links_are_slow() -> None:
    near, far = (
        pace_of({**BF16, "layout.ranks": n, "layout.tensor": 8}, WORK, CARD) for n in (8, 16)
    )
    assert far.compute == pytest.approx(near.compute / 2)
    assert far.exchange > near.exchange / 2


def test_cards_are_found_by_name() -> None:
    assert set(CARDS) <= set(DEVICES)
    found = rates_of(Device(kind="cuda", name="H100-80GB"))
    assert found == CARDS["H100-80GB"]
    assert rates_of(Device(kind="cuda", name="NVIDIA H100 80GB HBM3")).flops16 == found.flops16
    assert "assumed" in rates_of(Device(kind="cuda", name="strange")).source
    assert rates_of(Device(kind="cuda", name="strange")).link == UNKNOWN.link


AROUND = Context(
    device=Device(kind="cuda", bf16=True, capability=(9, 0), total_bytes=80 * 2**30),
    model=MODEL,
    global_batch=64,
    devices=8,
    sequence_length=2048,
)


@pytest.fixture(scope="module")
def space() -> Space:
    return every_value()


def test_layouts_are_legal_and_use_all_devices(space: Space) -> None:
    found = list(legal_layouts(space, AROUND, BF16, 8))
    assert len(found) == len(set(found)) > 50
    assert all(config["layout.ranks"] == 8 for config in found)
    assert all(not space.reasons(config, AROUND) for config in found[::20])
    fixed: Mapping[str, Value] = {**BF16, "layout.tensor": 4}
    assert all(c["layout.tensor"] == 4 for c in legal_layouts(space, AROUND, fixed, 8))


def test_what_holds_as_much() -> None:
    def config(**values: Value) -> Config:
        named = {name.replace("_", ".", 1): value for name, value in values.items()}
        return Config({"layout.ranks": 8, **named}, BUILTIN)

    plain, divided = config(), config(layout_data="zero3")
    assert holds_as_much(plain, divided)
    assert not holds_as_much(divided, plain)
    assert holds_as_much(plain, config(checkpointing="full"))
    assert not holds_as_much(config(layout_pipeline=2), plain)


@pytest.mark.parametrize(
    ("layout", "each"),
    [
        ({"layout.ranks": 8}, 2 + 2 + 8),
        ({"layout.ranks": 8, "layout.data": "zero1"}, 2 + 2 + 1),
        ({"layout.ranks": 8, "layout.data": "zero3"}, (2 + 2 + 8) / 8),
        ({"layout.ranks": 8, "layout.data": "zero3", "layout.shards": 2}, (2 + 2 + 8) / 2),
        ({"layout.ranks": 8, "layout.tensor": 4, "optimizer": "lion"}, (2 + 2 + 4) / 4),
        ({"layout.ranks": 8, "optimizer.bits": 8}, 2 + 2 + 2),
        ({"layout.ranks": 8, "layout.data": "server"}, 0),
        ({"layout.ranks": 8, "lora.rank": 8}, 0),
    ],
    ids=str,
)
def test_weights_gradients_and_states_alone(layout: Mapping[str, Value], each: float) -> None:
    idle = Work(model=ModelFacts(parameters=1000), global_batch=1, tokens=1)
    assert least_bytes(Config({**BF16, **layout}, BUILTIN), idle) == pytest.approx(1000 * each)


def test_what_blocks_keep() -> None:
    model = ModelFacts(layers=4, hidden=10, ffn=40)
    work = Work(model=model, global_batch=16, tokens=5)

    def least(**layout: Value) -> float:
        named = {name.replace("_", ".", 1): value for name, value in layout.items()}
        return least_bytes(Config({**BF16, "layout.ranks": 4, **named}, BUILTIN), work)

    tokens, blocks = 16 / 4 * 5, 4
    assert least() == pytest.approx(2 * blocks * tokens * (2 * 10 + 2 * 40))
    assert least(checkpointing="full") == pytest.approx(2 * blocks * tokens * 10)
    assert least(accumulation=4) == pytest.approx(least() / 4)
    assert least(layout_context=4) == pytest.approx(least())  # as many tokens, of fewer sequences


def estimate(config: Config, size: int) -> Estimate:
    rehearsal = Rehearsal(
        peak_bytes=size, phase="steady", within="", operator="", anatomy={}, peaks={},
        parameters=1, trained_parameters=1,
    )  # fmt: skip
    return Estimate(
        config=config,
        rehearsal=rehearsal,
        data=DataPlan(sequence_length=1, global_batch=64),
        accumulation=1,
        interval=Interval(low=size, middle=size, high=size),
    )


def test_planning_stops_when_enough_fit_and_passes_over_what_cannot(space: Space) -> None:
    candidates = list(legal_layouts(space, AROUND, BF16, 8))
    asked: list[Config] = []

    def predict(config: Config) -> Estimate:
        asked.append(config)
        if config.get("layout.context", 1) != 1:
            raise AutotuneError("sequences cannot be rehearsed")
        return estimate(config, 10 if config.get("layout.data") == "zero3" else 100)

    weightless = replace(WORK, model=replace(MODEL, parameters=0, layers=0))
    found = plan_layouts(
        weightless, CARD, predict, candidates=candidates, limit_bytes=50, most=3, patience=60.0
    )
    assert len(found.fitting) == 3
    times = [planned.pace.seconds for planned in found.fitting]
    assert times == sorted(times)
    assert all(planned.config["layout.data"] == "zero3" for planned in found.fitting)
    assert found.refused + len(found.fitting) == found.rehearsed
    assert found.passed > 0
    assert found.leanest is not None
    assert len(asked) < len(candidates)


def test_planning_says_what_was_nearest_if_nothing_fits(space: Space) -> None:
    candidates = list(legal_layouts(space, AROUND, {**BF16, "layout.tensor": 8}, 8))
    found = plan_layouts(
        WORK, CARD, lambda config: estimate(config, 100), candidates=candidates, limit_bytes=50,
        most=3, patience=60.0,
    )  # fmt: skip
    assert not found.fitting
    assert (found.rehearsed, found.refused) == (1, 1)  # all others have no room for weights alone
    assert found.leanest is not None
    assert found.leanest.config.get("layout.tensor") == 8
