"""What was not run is shown as predicted, apart from what was measured."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest

from autotune.core.config import Config
from autotune.core.outcome import Phase
from autotune.knobs import BUILTIN
from autotune.report.cards.findings import Findings
from autotune.report.cards.tradeoff import TradeOff, tradeoff_card
from autotune.report.predicted import HEADING, WORTH, predicted, predicted_parts
from autotune.report.summary import summary
from autotune.report.text import make_console
from autotune.storage.run import Run
from tests.cli.recorded import GIB, completed, spec
from tests.reports import make_run

EXACT = {"checkpointing": "full", "accumulation": 8}
TRIALS = (
    ({}, completed(0.90, 8.0)),
    (EXACT, completed(0.90, 3.0)),
    ({"precision": "bf16"}, completed(0.92, 6.0)),
    ({"precision": "bf16", "optimizer": "sgd"}, completed(0.70, 4.0)),
    ({"precision": "bf16", "optimizer": "sgd", **EXACT}, completed(0.70, 1.6)),
)
"""The best score was trained where it is fast; what lean settings save is known from others."""


def searched(**more) -> Run:
    return make_run(TRIALS, own=replace(spec(trials=len(TRIALS)), sampler="frontier", **more))


def shown(*parts) -> str:
    console = make_console(file := io.StringIO(), plain=True, width=100)
    for part in parts:
        console.print(part)
    return file.getvalue()


def test_a_lean_setting_of_the_best_score_is_predicted():
    found = predicted(searched())
    best = next(claim for claim in found if claim.trained == 2)
    config = {**best.config}
    assert config.pop("precision") == "bf16"
    assert set(config) <= {"checkpointing", "accumulation", "loss_chunks"}
    assert set(config)
    assert best.peak_bytes < WORTH * 6.0 * GIB
    assert best.spread > 0.0
    run = searched()
    tried = {record.config for record in run.records}
    assert not any(claim.config in tried for claim in found)


def test_a_prediction_is_not_below_what_its_trial_loaded_with():
    config, outcome = TRIALS[2]
    peaks = tuple(
        replace(peak, bytes=5 * GIB) if peak.phase is Phase.LOAD else peak
        for peak in outcome.measurement.peaks
    )
    loading = replace(outcome, measurement=replace(outcome.measurement, peaks=peaks))
    trials = (*TRIALS[:2], (config, loading), *TRIALS[3:])
    run = make_run(trials, own=replace(spec(trials=len(trials)), sampler="frontier"))
    before = next(claim for claim in predicted(searched()) if claim.trained == 2)
    after = next(claim for claim in predicted(run) if claim.trained == 2)
    assert before.peak_bytes < after.peak_bytes == 5 * GIB


def test_screens_and_the_report_tell_predictions_from_measurements():
    run = searched()
    found = predicted(run)
    text = shown(*predicted_parts(run, BUILTIN))
    assert HEADING in text
    assert text.count("±") == 2 * len(found)  # of the score, and of the predicted peak
    assert HEADING in shown(summary(run, BUILTIN, width=100))
    card = tradeoff_card(Findings.of(run, BUILTIN))
    assert isinstance(card, TradeOff)
    captions = [table.caption for table in card.tables]
    assert captions == ["The front, the best score first", HEADING]
    assert len(card.tables[1].rows) == len(found)


@pytest.mark.parametrize(
    "run",
    [
        make_run(TRIALS, own=replace(spec(), sampler="tpe")),
        make_run((), own=replace(spec(), sampler="frontier")),
        make_run(
            (*TRIALS[:2], ({"precision": "bf16", **EXACT}, completed(0.92, 2.0))),
            own=replace(spec(), sampler="frontier"),
        ),
    ],
    ids=["another sampler", "no trial", "run already"],
)
def test_nothing_is_predicted_where_there_is_nothing_to_tell(run):
    assert not any(claim.trained == 2 for claim in predicted(run))
    if len(run.records) != 3:
        assert predicted_parts(run, BUILTIN) == []


def test_exact_knobs_that_change_accuracy_end_all_predictions():
    spoiled = [*TRIALS[:4], (TRIALS[4][0], completed(0.2, 1.6))]
    run = make_run(spoiled, own=replace(spec(), sampler="frontier"))
    assert Config(TRIALS[4][0], BUILTIN) in {record.config for record in run.records}
    assert predicted(run) == ()
