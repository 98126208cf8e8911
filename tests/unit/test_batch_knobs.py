"""Batch knobs: the batch and length that are trained on, the rate that follows, and the pieces."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.core.context import Context
from autotune.core.errors import BadValue
from autotune.core.knob import run_stage
from autotune.knobs.accumulation import ACCUMULATION
from autotune.knobs.global_batch import GLOBAL_BATCH, effective_batch
from autotune.knobs.learning_rate import LEARNING_RATE
from autotune.knobs.sequence_length import SEQUENCE_LENGTH, shortened
from autotune.knobs.stages import DATA, OPTIMISE, STEP, DataPlan, OptimPlan, StepPlan

KNOBS = (GLOBAL_BATCH, SEQUENCE_LENGTH, LEARNING_RATE, ACCUMULATION)
PLAN = DataPlan(sequence_length=100, global_batch=8)


@pytest.mark.parametrize("value", GLOBAL_BATCH.domain.grid())
def test_the_batch_is_scaled_and_the_rate_by_the_root(value: float) -> None:
    plan = run_stage(DATA, PLAN, KNOBS, {"global_batch": value})
    assert plan == DataPlan(sequence_length=100, global_batch=int(8 * value))
    config = {"global_batch": value, "learning_rate": 3.0}
    assert run_stage(OPTIMISE, OptimPlan(), KNOBS, config).rate_scale == pytest.approx(
        3.0 * math.sqrt(value)
    )


@pytest.mark.parametrize(("value", "batch"), [(0.25, 6), (0.5, 3), (0.5, 1), (0.25, 2)])
def test_parts_of_sequences_are_refused(value: float, batch: int) -> None:
    reason = GLOBAL_BATCH.blocked(value, Context(global_batch=batch))
    assert f"is {batch * value:g} sequences, and only whole ones" in str(reason)
    assert "set global_batch to 1.0" in str(reason)
    plan = DataPlan(sequence_length=8, global_batch=batch)
    with pytest.raises(BadValue, match="only whole ones"):
        run_stage(DATA, plan, KNOBS, {"global_batch": value})


@given(
    batch=st.integers(1, 512),
    factor=st.sampled_from(GLOBAL_BATCH.domain.grid()),
    pieces=st.sampled_from(ACCUMULATION.domain.grid()),
)
def test_what_is_not_blocked_splits_evenly(batch: int, factor: float, pieces: int) -> None:
    config = {"global_batch": factor, "accumulation": pieces}
    context = Context(global_batch=batch, config=config)
    reasons = [knob.blocked(config[knob.name], context) for knob in (GLOBAL_BATCH, ACCUMULATION)]
    plan = DataPlan(sequence_length=8, global_batch=batch)
    whole = effective_batch(context) == round(effective_batch(context)) > 0
    assert (reasons[0] is None) is whole
    if whole:
        trained = run_stage(DATA, plan, KNOBS, config).global_batch
        assert trained == effective_batch(context)
        assert (reasons[1] is None) is (trained % pieces == 0)
    elif pieces > 1:
        assert reasons[1] is not None
    for reason in filter(None, reasons):
        assert len(reason.split()) > 5


def test_accumulation_divides_the_batch_that_is_trained_on() -> None:
    def reason(value: int, batch: int, factor: float) -> str | None:
        context = Context(global_batch=batch, config={"global_batch": factor})
        return ACCUMULATION.blocked(value, context)

    assert reason(8, 16, 1.0) is None
    assert "global batch of 4: use one of 1, 2, 4," in str(reason(8, 16, 0.25))
    assert reason(32, 16, 1.0) is not None
    assert reason(32, 16, 2.0) is None
    assert reason(1, 6, 0.25) is None
    assert "global batch of 1.5: use one of 1," in str(reason(2, 6, 0.25))
    assert run_stage(STEP, StepPlan(), KNOBS, {"accumulation": 8}) == StepPlan(accumulation=8)


@pytest.mark.parametrize(
    ("length", "share", "expected"),
    [(128, 0.5, 64), (100, 0.75, 72), (100, 0.25, 24), (20, 0.25, 8), (8, 0.5, 8), (5, 0.75, 5)],
)
def test_lengths_are_cut_to_multiples_of_eight(length: int, share: float, expected: int) -> None:
    assert shortened(length, share) == expected
    plan = DataPlan(sequence_length=length, global_batch=8)
    assert run_stage(DATA, plan, KNOBS, {"sequence_length": share}) == DataPlan(
        sequence_length=expected, global_batch=8
    )


@given(length=st.integers(1, 4096), share=st.sampled_from((0.25, 0.5, 0.75)))
def test_a_shortened_length_is_never_longer_and_near_its_share(length: int, share: float) -> None:
    short = shortened(length, share)
    assert 0 < short <= length
    assert short % 8 == 0 or short == length
    assert short <= max(8, share * length) < short + 8


def test_inputs_of_one_size_cannot_be_cut() -> None:
    images = Context(features=frozenset({"fixed_length"}))
    for value in SEQUENCE_LENGTH.domain.grid():
        assert SEQUENCE_LENGTH.blocked(value, Context()) is None
        blocked = SEQUENCE_LENGTH.blocked(value, images)
        assert (blocked is None) is (value == 1.0)
        if blocked is not None:
            assert "set sequence_length to 1.0" in blocked
