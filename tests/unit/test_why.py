"""Why a trial needs less: shares from trials that were run, and what no trials tell."""

from __future__ import annotations

import io
import shlex

import pytest

from autotune.core.config import Config
from autotune.core.outcome import OutOfMemory, Phase, Refused
from autotune.core.units import GIB
from autotune.knobs import BUILTIN
from autotune.memory.rehearsal import CannotRehearse
from autotune.report.failures import causes
from autotune.report.text import make_console
from autotune.report.trial import trial_screen
from autotune.report.why import (
    Share,
    Why,
    estimate_command,
    explain,
    rehearsed,
    why_screen,
    why_values,
)
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
    words = shlex.split(estimate_command(run, run.trial(3), without="precision"))
    assert words[:2] == ["autotune", "estimate"]
    assert [words[i + 1] for i, word in enumerate(words) if word == "--set"] == [
        "checkpointing=full"
    ]


def counted(config: Config) -> int:
    """A peak that bf16 halves; one knob cannot be put back."""
    if "optimizer" not in config:
        raise CannotRehearse("optimizer: something needs sgd")
    return (4 if config.get("precision") == "bf16" else 8) * GIB


def test_what_no_trials_tell_is_rehearsed_with_one_knob_put_back() -> None:
    lean = {"precision": "bf16", "optimizer": "sgd"}
    run = make_run((({}, completed(0.9, 10.0)), (lean, completed(0.85, 3.0))))
    found = explain(run, run.trial(1), BUILTIN)
    assert {share.saved_bytes for share in found.shares} == {None}
    told = rehearsed(found, run.trial(1).config, BUILTIN, counted)
    half = share(told, "precision")
    assert (half.saved_bytes, half.rehearsed, half.score) == (4 * GIB, True, None)
    assert told.part(half) == pytest.approx(4 / 7)
    assert told.shares[0] is half
    left = share(told, "optimizer")
    assert (left.saved_bytes, left.rehearsed) == (None, False)
    assert left.reason == "optimizer cannot be put back alone: optimizer: something needs sgd"
    assert [row["rehearsed"] for row in why_values(told)] == [True, False]
    console = make_console(io.StringIO(), plain=True)
    console.print(*why_screen(run, told, BUILTIN))
    text = " ".join(console.file.getvalue().split())
    assert "precision fp32 → bf16 +4.00 57% – rehearsed" in text
    assert "counted without training" in text
    assert "Optimizer cannot be put back alone: optimizer: something needs sgd." in text


def test_measured_shares_are_not_rehearsed_and_a_trial_may_not_be() -> None:
    run = make_run(FEW)
    found = explain(run, run.trial(3), BUILTIN)

    def refuse(_: Config) -> int:
        raise CannotRehearse("values decide")

    assert rehearsed(found, run.trial(3).config, BUILTIN, refuse) is found
    lean = {"precision": "bf16", "optimizer": "sgd"}
    run = make_run((({}, completed(0.9, 10.0)), (lean, completed(0.85, 3.0))))
    told = rehearsed(explain(run, run.trial(1), BUILTIN), run.trial(1).config, BUILTIN, refuse)
    assert {s.reason for s in told.shares} == {"the trial cannot be rehearsed: values decide"}


def test_a_refused_trial_has_the_command_that_itemises_it() -> None:
    refused = Refused(needed_bytes=16 * GIB, least_bytes=15 * GIB)
    run = make_run((*FEW, ({"optimizer": "lion"}, refused)))
    console = make_console(io.StringIO(), plain=True)
    console.print(trial_screen(run, run.trial(5), BUILTIN))
    text = " ".join(console.file.getvalue().split())
    assert "autotune estimate --objective text_classification --set optimizer=lion" in text
    (cause,) = causes(run.records, run.name, "", BUILTIN)
    assert "`autotune show bert-16gb/5` has the command that itemises it" in cause.help
