"""Cards of the report: their data and sentences follow from the trials, or they say why not."""

from __future__ import annotations

import csv
import io
import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from autotune.core.outcome import Completed, Crashed, OutOfMemory, Phase, Refused, Score
from autotune.core.pareto import hypervolume, reference_point
from autotune.core.seeds import Repetition
from autotune.core.units import GIB
from autotune.core.workload import Metric
from autotune.knobs import BUILTIN
from autotune.report.cards import CARDS, make_cards
from autotune.report.cards.anatomy import (
    Anatomy,
    anatomy_card,
    binding_sentence,
    help_sentence,
    helping_effect,
)
from autotune.report.cards.card import Card, Declined, count
from autotune.report.cards.failures import Failures, failures_card
from autotune.report.cards.findings import Findings
from autotune.report.cards.knobs import Knobs, knobs_card
from autotune.report.cards.next_gb import NextGb, next_gb_card, next_gb_sentence
from autotune.report.cards.reproduce import (
    format_bytes,
    reproduce_card,
    search_command,
    trials_csv,
)
from autotune.report.cards.tradeoff import TradeOff, tradeoff_card
from autotune.report.cards.trust import Trust, growth, trust_card
from autotune.report.cards.verdict import verdict
from autotune.storage.run import Run
from tests.cli.recorded import LIMIT, completed, spec
from tests.reports import FEW, findings, make_run

REFERENCE = Path(__file__).resolve().parents[2] / "results" / "reference"
CRASHES = (({}, Crashed(error="ValueError: no", exit_code=1)),)
TOO_LARGE = (
    *FEW,
    ({"optimizer": "lion"}, OutOfMemory(phase=Phase.FIRST, needed_bytes=20 * GIB)),
    (
        {"optimizer": "lion", "checkpointing": "full"},
        Refused(needed_bytes=16 * GIB, least_bytes=15 * GIB),
    ),
)


def test_verdict_names_each_pick_once_with_the_commands_for_it() -> None:
    head = verdict(findings(FEW))
    assert [(pick.number, pick.roles) for pick in head.picks] == [
        (1, ("Best score",)),
        (3, ("Recommended: knee", "Cheapest within 1% of the best")),
        (4, ("Least memory",)),
    ]
    assert [pick.recommended for pick in head.picks] == [False, True, False]
    best = head.picks[0]
    assert (best.score, best.error, best.peak) == ("0.900", "±.012", "5.00")
    assert best.export == "autotune export bert-16gb/1 --to hf"
    assert best.commands == ("autotune show bert-16gb/1", "autotune replay bert-16gb/1")
    assert head.title == "Text classification within 16.0 GB"


def test_verdict_says_what_the_recommended_one_gives_up() -> None:
    text = " ".join(verdict(findings(FEW)).sentences)
    assert "Three configurations are beaten by no other" in text
    # The best score is 0.900 at 5 GiB, the knee 0.893 at 2 GiB and 1500 against 800 tokens/s.
    assert "changes accuracy by −0.007 ±0.034" in text
    assert "needs 60% less memory, at 188% of the speed" in text
    assert "Against the baseline, the recommended one" in text
    assert "needs 75% less memory, at 150% of the speed" in text


def test_verdict_says_when_a_difference_can_be_told() -> None:
    sure = [(values, _with_stderr(outcome, 0.001)) for values, outcome in FEW]
    assert "cannot tell" not in " ".join(verdict(findings(sure)).sentences)
    assert "cannot tell" in " ".join(verdict(findings(FEW)).sentences)


def test_verdict_without_a_front_recommends_nothing() -> None:
    head = verdict(findings(CRASHES))
    assert head.picks == ()
    assert any("No trial completed within the budget" in text for text in head.sentences)
    assert any("autotune show bert-16gb --failed" in text for text in head.sentences)


def test_tradeoff_draws_every_trial_where_it_belongs() -> None:
    card = tradeoff_card(findings(TOO_LARGE))
    assert isinstance(card, TradeOff)
    states = {mark.number: (mark.state, round(mark.gib, 3)) for mark in card.marks}
    assert states == {
        0: ("dominated", 8.0),
        1: ("front", 5.0),
        2: ("dominated", 5.0),
        3: ("front", 2.0),
        4: ("front", 1.0),
        5: ("out of memory", 20.0),
        6: ("refused", 16.0),
    }
    assert card.limit_gib == LIMIT / GIB
    assert card.shows_budget
    assert card.logarithmic
    assert card.recommended == 3
    assert "two trials without a score" in " ".join(card.sentences)


def test_tradeoff_marks_what_completed_over_the_budget() -> None:
    card = tradeoff_card(findings((*FEW, ({"optimizer": "lion"}, completed(0.95, 20.0)))))
    assert isinstance(card, TradeOff)
    assert next(mark for mark in card.marks if mark.number == 5).state == "over"


def test_tradeoff_leaves_a_far_budget_out_of_the_picture() -> None:
    card = tradeoff_card(findings(FEW[1:]))
    assert isinstance(card, TradeOff)
    assert not card.shows_budget
    assert "a much smaller budget would have done" in " ".join(card.sentences)


def test_table_of_the_front_marks_the_recommended_row() -> None:
    (table,) = tradeoff_card(findings(FEW)).tables
    assert [row[0] for row in table.rows] == ["1", "3", "4"]
    assert table.marked == {1}
    assert table.rows[1][1:3] == ("0.893 ±.012", "2.00")


def test_next_gb_is_the_step_above_the_knee() -> None:
    card = next_gb_card(findings(FEW))
    assert isinstance(card, NextGb)
    assert [(s.before, s.after, round(s.gib, 3), round(s.score, 3)) for s in card.steps] == [
        (4, 3, 1.0, 0.193),
        (3, 1, 3.0, 0.007),
    ]
    assert [step.told for step in card.steps] == [True, False]
    assert "the next 3.00 GiB buy +0.007 ±0.034 accuracy (trial 1)" in card.sentences[0]
    assert card.sentences[1].startswith("No trial needed more than the budget")


def test_next_gb_names_the_budget_from_which_on_there_is_more() -> None:
    card = next_gb_card(findings(TOO_LARGE))
    assert isinstance(card, NextGb)
    assert "Two configurations were too large" in card.sentences[1]
    assert "about 16.00 GiB" in card.sentences[1]


def test_next_gb_where_the_knee_is_the_best() -> None:
    trials = [({}, completed(0.9, 2.0)), ({"precision": "bf16"}, completed(0.5, 1.9))]
    assert "more memory buys nothing" in next_gb_sentence(findings(trials))
    alone = next_gb_card(findings(trials[:1]))
    assert isinstance(alone, Declined)
    assert "one trial" in alone.reason


def test_anatomy_names_the_largest_part_and_the_knob_that_helps() -> None:
    card = anatomy_card(findings(FEW))
    assert isinstance(card, Anatomy)
    assert [bar.number for bar in card.bars] == [1, 3, 4]
    assert card.bars[0].parts["weights"] == pytest.approx(0.3 * 5.0)
    assert "weights are the largest part: 30%" in binding_sentence(findings(FEW))
    # Trial 3 has bf16 and full checkpointing already; the only step from its values that saves
    # memory was taken without checkpointing, and costs score.
    text = help_sentence(findings(FEW))
    assert "optimizer adamw → sgd saved 4.00 GiB elsewhere, with accuracy −0.195" in text


def test_help_is_not_known_without_a_pair_that_starts_from_there() -> None:
    trials = (FEW[0], ({"precision": "bf16", "optimizer": "sgd"}, completed(0.8, 1.0)))
    assert "is not known" in help_sentence(findings(trials))


def test_a_knob_that_surely_costs_score_helps_only_where_there_is_no_other() -> None:
    leaner = {"precision": "bf16", "checkpointing": "full", "accumulation": 4}
    found = findings((*FEW, (leaner, completed(0.893, 1.9))))
    first = helping_effect(found, found.run.trial(3))
    assert first is not None
    assert (first.knob, first.exact) == ("accumulation", True)
    only = helping_effect(findings(FEW), found.run.trial(3))
    assert only is not None
    assert only.knob == "optimizer"


def test_anatomy_says_where_the_peak_is_elsewhere() -> None:
    run = Run.open("cpu-default", REFERENCE)
    card = anatomy_card(Findings.of(run, BUILTIN))
    assert isinstance(card, Anatomy)
    assert "comes while loading" in " ".join(card.sentences)


def test_knobs_have_intervals_and_exact_ones_none_of_score() -> None:
    card = knobs_card(findings(FEW))
    assert isinstance(card, Knobs)
    by_name = {effect.knob: effect for effect in card.effects}
    ckpt = by_name["checkpointing"]
    assert (ckpt.pairs, ckpt.exact) == (2, True)
    assert ckpt.peak_bytes == pytest.approx(-3 * GIB, abs=2)
    assert ckpt.peak_error == pytest.approx(0.0, abs=20)
    single = by_name["optimizer"]
    assert single.peak_error is None
    assert single.score_error is not None
    rows = {row[0]: row for row in card.tables[0].rows}
    assert rows["checkpointing none → full"][2] == "exact"
    assert "±" in rows["precision fp32 → bf16"][2]


def test_trust_compares_predictions_with_measurements() -> None:
    predicted = {0: int(8.8 * GIB), 1: int(5.0 * GIB), 3: int(1.9 * GIB), 5: int(14 * GIB)}
    card = trust_card(findings(TOO_LARGE, rehearsed=predicted))
    assert isinstance(card, Trust)
    assert [(p.number, p.ran_out) for p in card.predictions] == [
        (0, False),
        (1, False),
        (3, False),
        (5, True),
    ]
    assert "median error of 5.0%" in card.sentences[0]
    assert "trial 0, was predicted at 8.80 GiB and measured at 8.00 GiB" in card.sentences[0]


def test_growth_ends_at_one_and_never_falls() -> None:
    for name in ("cpu-default", "lstm"):
        found = Findings.of(Run.open(name, REFERENCE), BUILTIN)
        shares = [share for _, share in growth(found)]
        assert shares == sorted(shares)
        assert shares[-1] == 1.0
        assert len(shares) == len(found.run.records)


def test_growth_is_the_hypervolume_of_the_front_so_far() -> None:
    found = findings(FEW)
    reference = reference_point(found.run.records, found.metric)
    assert reference is not None
    bound = (reference[0], 1.05 * 8.0 * GIB)
    points = [record.point(found.metric) for record in found.run.records]
    volumes = [hypervolume([p for p in points[:n] if p], bound) for n in range(1, 6)]
    assert [share for _, share in growth(found)] == pytest.approx(
        [volume / volumes[-1] for volume in volumes], rel=1e-6
    )


def test_trust_says_what_repeats_and_exact_knobs_show() -> None:
    again = (*FEW, ({"precision": "bf16"}, completed(0.885, 5.1)))
    text = " ".join(trust_card(findings(again)).sentences)
    assert "One configuration trained more than once differed by at most 0.010" in text
    assert "2.0% in peak memory" in text
    text = " ".join(trust_card(findings(FEW)).sentences)
    assert "No configuration was trained twice" in text
    # fp32 with and without checkpointing score the same; bf16 ones differ by 0.002.
    assert "In two groups of trials that differ in exact knobs only" in text
    assert "accuracy differs by at most 0.002" in text
    assert "autotune resume bert-16gb --repeats auto" in text


def test_trust_says_how_far_first_scores_were_above_their_means() -> None:
    run = make_run(FEW)
    ends = {1: (0.88, 0.86), 3: (0.893, 0.890)}
    records = tuple(
        replace(
            record,
            repeats=tuple(
                Repetition(seed=1 + n, started=0.0, outcome=completed(value, 5.0))
                for n, value in enumerate(ends.get(record.number, ()))
            ),
        )
        for record in run.records
    )
    found = Findings.of(replace(run, records=records), BUILTIN)
    text = " ".join(trust_card(found).sentences)
    # Trial 1 fell from 0.900 to 0.880 on average, trial 3 from 0.893 to 0.892.
    assert "the first scores of two trials on the front were 0.011 better on average" in text
    assert "and by up to 0.020" in text
    assert "trained with several seeds differed by at most 0.040 in accuracy" in text
    assert "Trials 1 and 3 had 4 trainings with further seeds: trial 1 left the front" in text
    assert "and trials 0 and 2 joined the front" in text
    # Exact knobs are compared seed by seed, not by means of unlike many.
    assert "accuracy differs by at most 0.002" in text
    assert "and over seeds where a trial was repeated" in " ".join(tradeoff_card(found).sentences)
    # Trial 0 differs in an exact knob only, and has kept its luck: it is what is repeated next.
    assert [record.number for record in found.front] == [4, 3, 2, 0]


def test_failures_show_the_smallest_change_that_fits() -> None:
    card = failures_card(findings(TOO_LARGE))
    assert isinstance(card, Failures)
    fixes = {cause.cause: cause.fix for cause in card.causes}
    assert "optimizer lion → adamw (trial 0," in fixes["out of memory in first"]
    assert "(trial 1," in fixes["refused: the rehearsal is over the budget"]
    only = failures_card(findings(TOO_LARGE[5:]))
    assert isinstance(only, Failures)
    assert "no trial of this run fits" in only.causes[0].fix


def test_crashes_have_no_change_that_fits() -> None:
    card = failures_card(findings((*FEW, *CRASHES)))
    assert isinstance(card, Failures)
    assert card.causes[0].fix == ""


def test_every_card_declines_with_a_reason_where_nothing_was_scored() -> None:
    declined = {card.key for card in make_cards(findings(CRASHES)) if isinstance(card, Declined)}
    assert declined == {"trade-off", "next-gb", "memory", "timeline", "knobs", "trust"}
    for card in make_cards(findings(CRASHES)):
        assert isinstance(card, Card) or len(card.reason.split()) > 3


@pytest.mark.parametrize("trials", [(), CRASHES, FEW[:1], FEW, TOO_LARGE, (({}, None),)])
def test_every_card_can_be_made_of_any_run(trials: tuple[object, ...]) -> None:
    cards = make_cards(findings(trials))
    assert len(cards) == len(CARDS)
    assert len({card.key for card in cards}) == len(cards)


def test_metrics_to_minimise_turn_round() -> None:
    loss = Metric(name="perplexity", maximize=False, digits=2)
    own = spec()
    own = replace(own, facts=replace(own.facts, metrics=(loss,)))
    trials = [
        (values, replace(outcome, scores={"perplexity": Score(value=value, stderr=0.1)}))
        for (values, outcome), value in zip(FEW, (8.0, 8.0, 8.05, 8.06, 20.0), strict=True)
        if isinstance(outcome, Completed)
    ]
    found = findings(trials, own=own)
    assert [record.number for record in found.front] == [4, 3, 1]
    assert found.picks.cheapest is not None
    assert found.picks.cheapest.number == 3
    card = tradeoff_card(found)
    assert isinstance(card, TradeOff)
    assert "no trial lies below and to the left" in card.sentences[0]


def test_command_searches_again() -> None:
    run = make_run(FEW, own=replace(spec(), overrides={"precision": "bf16, fp32"}))
    words = shlex.split(search_command(run))
    assert words[:4] == ["autotune", "run", "--budget", "16GB"]
    assert words[words.index("--set") + 1] == "precision=bf16, fp32"
    assert words[words.index("--steps") + 1] == "120"
    assert "--model" not in words


@pytest.mark.parametrize("text", ["16GB", "14GiB", "350MB", "20MiB", "1500000001B"])
def test_budget_reads_back_to_the_same_bytes(text: str) -> None:
    from autotune.core.units import parse_bytes

    assert format_bytes(parse_bytes(text)) == text


def test_trials_come_as_json_and_csv() -> None:
    card = reproduce_card(findings(TOO_LARGE))
    document = json.loads(card.data)
    assert document["schema"] == 1
    assert len(document["trials"]) == 7
    assert document["trials"][3]["scores"]["accuracy"]["value"] == 0.893
    rows = list(csv.DictReader(io.StringIO(card.csv)))
    assert [row["status"] for row in rows[-2:]] == ["out-of-memory", "refused"]
    assert rows[3]["accuracy"] == "0.893"
    assert rows[3]["knob.precision"] == "bf16"


def test_csv_holds_no_formula() -> None:
    bad = Crashed(error="=HYPERLINK(1)")
    own = Crashed(error="x")
    text = trials_csv(findings((*FEW, ({}, bad), ({}, own))))
    cells = [cell for row in csv.reader(io.StringIO(text)) for cell in row]
    assert not any(cell.startswith(("=", "@", "+")) for cell in cells)


def test_counting_words() -> None:
    assert count(1, "trial") == "one trial"
    assert count(0, "trial") == "no trial"
    assert count(12, "trial") == "12 trials"


def _with_stderr(outcome: object, stderr: float) -> Completed:
    assert isinstance(outcome, Completed)
    scores = {n: replace(s, stderr=stderr) for n, s in outcome.scores.items()}
    return replace(outcome, scores=scores)
