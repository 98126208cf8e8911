"""Outcomes cross processes as JSON and come back as they were."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.core.outcome import (
    ANATOMY_PARTS,
    OUTCOMES,
    Completed,
    Crashed,
    Diverged,
    Measurement,
    OutOfMemory,
    Paused,
    Peak,
    PeakKind,
    Phase,
    Refused,
    Rung,
    Score,
    Stopped,
    TimedOut,
    outcome_from_json,
)
from autotune.core.record import TrialRecord, finished
from tests.knobs import LOSS, completed, ended, out_of_memory

NUMBERS = st.integers(0, 2**45)
SECONDS = st.floats(0, 1e6)
PEAKS = st.builds(
    Peak,
    phase=st.sampled_from(Phase),
    kind=st.sampled_from(PeakKind),
    bytes=NUMBERS,
    rank=st.integers(0, 7),
)
MEASUREMENTS = st.builds(
    Measurement,
    peaks=st.lists(PEAKS, max_size=6).map(tuple),
    anatomy=st.dictionaries(st.sampled_from(ANATOMY_PARTS), NUMBERS),
    step_seconds=SECONDS,
    throughput=SECONDS,
    steps=st.integers(0, 100),
    parameters=NUMBERS,
    trained_parameters=NUMBERS,
)
SCORES = st.builds(
    Score, value=st.floats(-1e6, 1e6), stderr=st.none() | SECONDS, n=st.integers(0, 10**6)
)
RUNGS = st.builds(
    Rung,
    share=st.floats(0.01, 0.99),
    step=st.integers(1, 99),
    steps=st.integers(100, 200),
    seconds=SECONDS,
    scores=st.dictionaries(st.text(max_size=5), SCORES, max_size=2),
)
OWN = {
    Completed: {"scores": st.dictionaries(st.text(max_size=5), SCORES, max_size=3)},
    OutOfMemory: {
        "phase": st.sampled_from(Phase),
        "step": st.integers(0, 9),
        "needed_bytes": NUMBERS,
        "message": st.text(max_size=9),
    },
    Paused: {"rungs": st.lists(RUNGS, min_size=1, max_size=3).map(tuple)},
    Stopped: {"step": st.integers(0, 9), "reason": st.text(max_size=9)},
    Diverged: {"step": st.integers(0, 9), "loss": st.sampled_from(["nan", "inf"])},
    Crashed: {
        "signal": st.none() | st.just("SIGSEGV"),
        "exit_code": st.none() | st.integers(-1, 255),
        "error": st.text(max_size=9),
        "traceback": st.text(max_size=9),
    },
    TimedOut: {"limit_seconds": SECONDS, "phase": st.sampled_from(["", "load", "eval"])},
    Refused: {"needed_bytes": NUMBERS, "least_bytes": NUMBERS},
}
ANY = st.one_of(
    *(st.builds(k, seconds=SECONDS, measurement=MEASUREMENTS, **f) for k, f in OWN.items())
)


@given(ANY)
def test_every_outcome_survives_json(outcome):
    again = outcome_from_json(json.loads(json.dumps(outcome.to_json())))
    assert again == outcome
    assert type(again) is type(outcome)
    assert all(isinstance(peak.phase, Phase) for peak in again.measurement.peaks)


def test_every_kind_of_outcome_has_a_tag_and_is_generated():
    assert set(OUTCOMES.values()) == set(OWN)
    assert all(kind.tag == tag for tag, kind in OUTCOMES.items())
    with pytest.raises(KeyError):
        outcome_from_json({"outcome": "vanished"})


@given(MEASUREMENTS)
def test_the_footprint_is_the_strictest_peak(measurement):
    footprint = measurement.footprint_bytes
    assert footprint == max([0, *(peak.bytes for peak in measurement.peaks)])
    assert measurement.peak_bytes <= footprint


def test_peaks_are_by_kind_and_phase_over_ranks():
    measurement = Measurement(
        peaks=tuple(
            Peak(phase=phase, kind=kind, bytes=size, rank=rank)
            for phase, kind, size, rank in [
                (Phase.LOAD, PeakKind.ALLOCATED, 5, 0),
                (Phase.STEADY, PeakKind.ALLOCATED, 7, 0),
                (Phase.STEADY, PeakKind.ALLOCATED, 9, 1),
                (Phase.STEADY, PeakKind.RESIDENT, 20, 0),
            ]
        )
    )
    assert measurement.peak(PeakKind.ALLOCATED) == 9
    assert measurement.peak(PeakKind.ALLOCATED, Phase.LOAD) == 5
    assert measurement.peak(PeakKind.DEVICE) == 0
    assert measurement.peak_bytes == 9
    reserved = Peak(phase=Phase.STEADY, kind=PeakKind.RESERVED, bytes=12)
    assert Measurement(peaks=(*measurement.peaks, reserved)).peak_bytes == 12


@pytest.mark.parametrize(
    ("outcome", "summary"),
    [
        (Completed(), "completed"),
        (OutOfMemory(phase=Phase.STEADY, step=2), "out of memory in steady, step 2"),
        (Paused(rungs=(Rung(share=1 / 9, step=4, steps=40),)), "paused at 1/9"),
        (Stopped(step=3, reason="interrupted"), "stopped at step 3: interrupted"),
        (Diverged(step=4, loss="inf"), "diverged at step 4, loss inf"),
        (Crashed(signal="SIGSEGV"), "crashed: SIGSEGV"),
        (Crashed(error="ValueError: x"), "crashed: ValueError: x"),
        (Crashed(exit_code=3), "crashed: exit code 3"),
        (TimedOut(limit_seconds=60.4, phase="load"), "timed out after 60 s in load"),
        (TimedOut(limit_seconds=60), "timed out after 60 s in start"),
    ],
)
def test_outcomes_are_told_in_a_few_words(outcome, summary):
    assert outcome.summary == summary


def test_only_completed_trials_within_the_limit_are_feasible():
    assert completed(0, peak=10, limit=10).feasible
    assert not completed(0, peak=11, limit=10).feasible
    assert not out_of_memory(0).feasible
    assert completed(0, loss=2.0, peak=10, limit=10).point(LOSS) == (2.0, 10.0)
    assert completed(0, peak=11, limit=10).point(LOSS) is None
    assert out_of_memory(0).score(LOSS) is None


def test_trials_without_an_outcome_are_not_finished():
    records = [completed(0), ended(1, None), out_of_memory(2)]
    assert finished(records) == [records[0], records[2]]
    assert isinstance(records[1], TrialRecord)


def test_where_only_the_trained_model_counts_so_does_its_evaluation():
    peaks = tuple(
        Peak(phase=phase, kind=PeakKind.ALLOCATED, bytes=size)
        for phase, size in ((Phase.STEADY, 900), (Phase.EVALUATE, 100))
    )
    assert Measurement(peaks=peaks).footprint_bytes == 900
    deployed = Measurement(peaks=peaks, counted=Phase.EVALUATE)
    assert (deployed.peak_bytes, deployed.footprint_bytes) == (100, 100)
    assert deployed.peak(PeakKind.ALLOCATED, Phase.STEADY) == 900
