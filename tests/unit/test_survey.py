"""How much of a space fits: exact where it is small, a fair sample where it is not."""

from __future__ import annotations

import random

import pytest
from scipy.stats import binomtest

from autotune import survey as module
from autotune.core.config import Config
from autotune.core.context import Context, Device
from autotune.core.errors import AutotuneError
from autotune.core.space import Space
from autotune.survey import Survey, drawn, survey, wilson
from tests.knobs import BITS, CHECKPOINTING, CHUNKS, KNOBS, RATE, SHARE

CONTEXT = Context(device=Device(kind="cpu"))
SMALL = Space(
    name="small",
    knobs=KNOBS,
    domains={knob.name: knob.domain for knob in (SHARE, CHECKPOINTING, BITS)},
    rules=(),
)
LARGE = Space(
    name="large",
    knobs=KNOBS,
    domains={knob.name: knob.domain for knob in (SHARE, CHECKPOINTING, BITS, CHUNKS, RATE)},
    rules=(),
)


def need(config: Config) -> int:
    return int(config.get("weight_bits", 16))


def test_a_small_space_is_counted_exactly() -> None:
    found = survey(SMALL, CONTEXT, need, limit_bytes=8)
    legal = SMALL.count(CONTEXT)
    assert (found.legal, len(found.needs)) == (legal, legal)
    assert found.complete
    assert found.fitting * 3 == legal * 2, "two of three numbers of bits"
    assert found.interval == (found.share, found.share)
    assert found.spread == (4, 8, 16)


def test_a_sample_of_a_large_space_bounds_the_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_REHEARSED", 120)
    found = survey(LARGE, CONTEXT, need, limit_bytes=8)
    assert found.legal is None
    assert len(found.needs) == 120
    assert not found.complete
    low, high = found.interval
    assert low < 2 / 3 < high
    assert high - low < 0.2
    assert survey(LARGE, CONTEXT, need, limit_bytes=8).needs == found.needs, "seeded"


def test_what_cannot_be_rehearsed_is_counted_apart() -> None:
    def broken(config: Config) -> int:
        if config.get("checkpointing") == "full":
            raise AutotuneError("no")
        return need(config)

    found = survey(SMALL, CONTEXT, broken, limit_bytes=100)
    assert found.unknown == sum(
        config.get("checkpointing") == "full" for config in SMALL.enumerate(CONTEXT)
    )
    assert found.complete
    assert found.share == 1.0
    assert found.interval[0] < 1.0, "those left out may not fit"


def test_time_ends_a_survey(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    found = survey(SMALL, CONTEXT, need, limit_bytes=8, seconds=35)
    assert 2 <= len(found.needs) <= 6
    assert not found.complete


def test_draws_are_legal_new_and_end_where_the_space_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MOST_ENUMERATED", 0)
    monkeypatch.setattr(module, "MOST_DRAWS", 2000)
    legal, order = drawn(SMALL, CONTEXT, random.Random(1))
    found = list(order)
    assert legal is None
    assert len(found) == len(set(found)) == SMALL.count(CONTEXT)
    assert all(SMALL.legal(config, CONTEXT) for config in found)


@pytest.mark.parametrize(("successes", "trials"), [(0, 20), (67, 120), (20, 20), (1, 300)])
def test_the_interval_is_wilsons(successes: int, trials: int) -> None:
    exact = binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    assert wilson(successes, trials) == pytest.approx((exact.low, exact.high), abs=1e-9)


def test_nothing_rehearsed_says_nothing() -> None:
    empty = Survey(limit_bytes=1, legal=None, needs=(), unknown=0, seconds=0.0)
    assert empty.share == 0.0
    assert empty.interval == (0.0, 1.0)
