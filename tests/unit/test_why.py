"""Why a trial needs less: shares from trials that were run, and what no trials tell."""

from __future__ import annotations

import shlex

import pytest

from autotune.core.outcome import OutOfMemory, Phase
from autotune.core.units import GIB
from autotune.knobs import BUILTIN
from autotune.report.why import Share, Why, explain, why_values, without
from tests.cli.recorded import completed
from tests.reports import FEW, Trial, make_run


def why(trials: tuple[Trial, ...], number: int) -> Why:
    run = make_run(trials)
    return explain(run, run.trial(number), BUILTIN)


def share(found: Why, knob: str) -> Share:
    return next(share for share in found.shares if share.knob == knob)


def test_a_trial_that_is_the_same_but_for_one_knob_tells_its_share() -> None:
    found = why(FEW, 3)
    assert (found.baseline, found.saved_bytes) == (0, 6 * GIB)
    ckpt = share(found, "checkpointing")
    assert (ckpt.neighbour, ckpt.exact, ckpt.score) == (2, True, 0.0)
    assert ckpt.saved_bytes == pytest.approx(3 * GIB, abs=2)
    assert found.part(ckpt) == pytest.approx(0.5)
    half = share(found, "precision")
    assert half.neighbour == 1
    assert half.score == pytest.approx(-0.007)


def test_matched_pairs_elsewhere_are_second_best() -> None:
    lean = {"precision": "bf16", "optimizer": "sgd", "checkpointing": "full", "accumulation": 4}
    found = why((*FEW, (lean, completed(0.7, 0.5))), 5)
    ckpt = share(found, "checkpointing")
    assert (ckpt.neighbour, ckpt.pairs) == (None, 2)
    assert ckpt.saved_bytes == pytest.approx(3 * GIB, abs=2)
    missing = share(found, "accumulation")
    assert (missing.saved_bytes, missing.neighbour, missing.pairs) == (None, None, 0)
    assert found.part(missing) is None


def test_a_neighbour_that_ran_out_of_memory_bounds_the_saving() -> None:
    trials = (
        ({}, OutOfMemory(phase=Phase.FIRST, needed_bytes=20 * GIB)),
        ({"precision": "bf16"}, completed(0.9, 6.0)),
    )
    found = why(trials, 1)
    assert found.bound == "at least"
    only = share(found, "precision")
    assert (only.neighbour, only.at_least) == (0, True)
    assert only.saved_bytes == 14 * GIB
    assert only.score is None


def test_without_a_baseline_there_are_no_shares_of_the_whole() -> None:
    trials = (({}, None), ({"precision": "bf16"}, completed(0.9, 6.0)))
    found = why(trials, 1)
    assert found.saved_bytes == 0
    assert found.part(share(found, "precision")) is None


def test_the_baseline_differs_in_nothing() -> None:
    assert why(FEW, 0).shares == ()


def test_values_say_what_the_shares_are() -> None:
    values = {row["knob"]: row for row in why_values(why(FEW, 3))}
    assert values["checkpointing"]["saved_gib"] == pytest.approx(3.0)
    assert values["checkpointing"]["share"] == pytest.approx(0.5)


def test_command_predicts_the_trial_without_one_knob() -> None:
    run = make_run(FEW)
    words = shlex.split(without(run, run.trial(3), "precision"))
    assert words[:2] == ["autotune", "estimate"]
    assert [words[i + 1] for i, word in enumerate(words) if word == "--set"] == [
        "checkpointing=full"
    ]
