"""Two trials or two runs side by side: differences, intervals, and what is not comparable."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from autotune.core.outcome import OutOfMemory, Phase
from autotune.knobs import BUILTIN
from autotune.report.compare import Comparison, compare_runs, compare_trials
from autotune.report.intervals import NORMAL
from tests.cli.recorded import completed, spec
from tests.reports import FEW, make_run


def trials(a: int, b: int) -> Comparison:
    run = make_run((*FEW, ({"optimizer": "lion"}, OutOfMemory(phase=Phase.FIRST))))
    return compare_trials((run, run.trial(a)), (run, run.trial(b)), BUILTIN)


def quantity(found: Comparison, name: str) -> object:
    return next(q for q in found.quantities if q.name == name)


def test_trials_differ_in_what_was_set_and_what_came_of_it() -> None:
    found = trials(0, 4)
    assert (found.a, found.b) == ("bert-16gb/0", "bert-16gb/4")
    assert found.differs == (("precision", "fp32", "bf16"), ("optimizer", "adamw", "sgd"))
    score = quantity(found, "accuracy")
    assert score.difference == pytest.approx(-0.2)
    assert score.error == pytest.approx(NORMAL * 0.0123 * 2**0.5)
    assert score.told is True
    peak = quantity(found, "peak GiB")
    assert (peak.a, peak.b, peak.told) == (pytest.approx(8.0), pytest.approx(1.0), None)
    assert quantity(found, "weights GiB").difference == pytest.approx(-2.1)


def test_a_difference_within_its_interval_is_not_told() -> None:
    assert quantity(trials(0, 2), "accuracy").told is False


def test_exact_knobs_promise_the_same_score() -> None:
    assert any("exact knobs only" in note for note in trials(0, 1).notes)
    assert not any("exact knobs only" in note for note in trials(0, 2).notes)


def test_what_did_not_complete_has_no_score() -> None:
    found = trials(0, 5)
    assert quantity(found, "accuracy").difference is None
    assert "Trial 5 has no score (out of memory in first, step 0)" in found.notes[0]


def test_the_same_configuration_differs_by_chance() -> None:
    run = make_run((*FEW, FEW[2]))
    found = compare_trials((run, run.trial(2)), (run, run.trial(5)), BUILTIN)
    assert found.differs == ()
    assert any("chance" in note for note in found.notes)


def test_trials_of_two_runs_also_differ_in_what_these_depend_on() -> None:
    run, other = make_run(FEW), make_run(FEW, name="second", own=replace(spec(), seed=1))
    found = compare_trials((run, run.trial(0)), (other, other.trial(0)), BUILTIN)
    assert ("search seed", "0", "1") in found.differs


def test_runs_are_compared_by_picks_and_fronts() -> None:
    better = [(values, completed(0.95, 1.5)) for values, _ in FEW[:1]]
    found = compare_runs(make_run(FEW), make_run(better, name="second"), BUILTIN)
    assert quantity(found, "best score: accuracy").difference == pytest.approx(0.05)
    assert quantity(found, "best score: peak GiB").difference == pytest.approx(-3.5)
    volumes = quantity(found, "hypervolume")
    assert volumes.a < volumes.b < 1.0
    assert quantity(found, "trials").difference == -4
    (note,) = found.notes
    assert "1 configuration completed in both" in note
    assert "accuracy changed by +0.050 and the peak by −81.2% on average" in note


def test_runs_against_themselves_differ_in_nothing() -> None:
    run = make_run(FEW)
    found = compare_runs(run, run, BUILTIN)
    assert found.differs == ()
    assert {q.difference for q in found.quantities} == {0.0}
    assert "accuracy changed by 0.000 ±0.000" in found.notes[0]


def test_what_cannot_be_compared_is_said() -> None:
    own = spec()
    other = replace(own, facts=replace(own.facts, data_fingerprint="other"))
    found = compare_runs(make_run(FEW), make_run(FEW, own=other), BUILTIN)
    assert "scored on different data" in found.notes[0]
    metric = replace(own.facts.metrics[0], name="f1")
    other = replace(own, facts=replace(own.facts, metrics=(metric,)))
    found = compare_runs(make_run(FEW), make_run(FEW, own=other), BUILTIN)
    assert "accuracy is not f1" in found.notes[0]
    assert found.quantities == ()


def test_recorded_runs_can_be_compared() -> None:
    from autotune.storage.run import Run

    reference = Path(__file__).resolve().parents[2] / "results" / "reference"
    runs = [Run.open(name, reference) for name in ("cpu-default", "lstm")]
    found = compare_runs(*runs, BUILTIN)
    assert ("space", "default", "compress") in found.differs
    assert any("different models" in note for note in found.notes)


def test_runs_that_were_to_search_otherwise_far_say_so() -> None:
    short = make_run(FEW)
    long = replace(short, spec=replace(short.spec, trials=40, time_limit=60.0))
    found = compare_runs(short, long, BUILTIN)
    assert found.differs == (("most trials", "5", "40"), ("most seconds", "–", "60.0"))
