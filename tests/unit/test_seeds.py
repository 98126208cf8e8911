"""Further seeds: means and their intervals, which repeat is next, what luck has to give back."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable
from dataclasses import replace

import pytest

from autotune.core.errors import BadValue
from autotune.core.outcome import Completed, OutOfMemory, Phase, Score
from autotune.core.pareto import front
from autotune.core.record import TrialRecord
from autotune.core.seeds import NORMAL, Repetition, mean_score
from autotune.core.workload import Metric
from autotune.search.seeds import (
    MOST_SEEDS,
    Order,
    checked_repeats,
    first_front,
    next_repeat,
    optimism,
    repeats_sentence,
    search_seconds,
)
from tests.studies import KNOBS, METRIC, completed, make_spec, trial

Draw = Callable[[int, int], float]


def scored(accuracy: float, mib: int, stderr: float = 0.01) -> Completed:
    end = completed(accuracy, mib)
    return replace(end, scores={"accuracy": Score(value=accuracy, stderr=stderr, n=200)})


def point(number: int, accuracy: float, mib: int, *more: float, chunks: int = 1) -> TrialRecord:
    """A trial with a rate of its own, and a repeat for each further accuracy."""
    config = {"rate": 1.0 + number, "chunks": chunks}
    repeats = tuple(
        Repetition(seed=8 + place, started=0.0, outcome=scored(value, mib))
        for place, value in enumerate(more)
    )
    return replace(trial(number, config, scored(accuracy, mib)), repeats=repeats)


def repeated(record: TrialRecord, accuracy: float) -> TrialRecord:
    mib = record.outcome.measurement.peak_bytes // 2**20
    again = Repetition(seed=8 + len(record.repeats), started=0.0, outcome=scored(accuracy, mib))
    return replace(record, repeats=(*record.repeats, again))


def settle(records: list[TrialRecord], draw: Draw, repeats: str = "auto") -> list[TrialRecord]:
    """Repeat until the rule has enough; `draw` says what a trial scores with a further seed."""
    known = {record.number: record for record in records}
    while (found := next_repeat(list(known.values()), METRIC, KNOBS, repeats)) is not None:
        record, further = found
        assert further == len(record.repeats) + 1
        known[record.number] = repeated(record, draw(record.number, further))
    return list(known.values())


def filler(count: int) -> list[TrialRecord]:
    """Trials far from every front, which only give the repeats something to be a third of."""
    return [point(100 + place, 0.1, 490) for place in range(count)]


def test_a_single_score_is_its_own_mean() -> None:
    assert mean_score([Score(value=0.5, stderr=0.1, n=3)]) == Score(value=0.5, stderr=0.1, n=3)


def test_the_error_of_a_mean_is_that_of_the_evaluation_and_of_seeds_together() -> None:
    mean = mean_score([Score(value=v, stderr=0.01, n=200) for v in (0.90, 0.94)])
    assert mean.value == pytest.approx(0.92)
    both = math.sqrt(0.0008 / 2 + 0.01**2)
    quantile = 0.8 * 12.7062 + 0.2 * NORMAL  # four fifths of the variance come from two seeds
    assert mean.stderr == pytest.approx(both * quantile / NORMAL, rel=1e-4)
    assert mean.n == 200
    same = mean_score([Score(value=0.9, stderr=0.01)] * 3)
    assert same.stderr == pytest.approx(0.01)
    assert mean_score([Score(value=0.9)] * 3).stderr is None
    assert mean_score([Score(value=0.9), Score(value=math.inf)]).stderr is None


@pytest.mark.parametrize("seeds", [2, 3, 4, 8])
@pytest.mark.parametrize("scatter", [0.0, 0.5, 2.0, 8.0])
def test_intervals_hold_the_truth_95_times_of_100(seeds: int, scatter: float) -> None:
    rng = random.Random(seeds)
    held = 0
    for _ in range(2000):
        shared = rng.gauss(0.0, 1.0)  # all seeds are evaluated on the same examples
        values = [shared + rng.gauss(0.0, scatter) for _ in range(seeds)]
        mean = mean_score([Score(value=value, stderr=1.0) for value in values])
        assert mean.stderr is not None
        held += abs(mean.value) <= NORMAL * mean.stderr
    assert held / 2000 > 0.93


def test_a_record_shows_means_and_keeps_its_first_score() -> None:
    record = point(0, 0.90, 100, 0.94)
    failed = Repetition(seed=10, started=0.0, outcome=OutOfMemory(phase=Phase.FIRST))
    record = replace(record, repeats=(*record.repeats, failed))
    assert record.seeds == 2
    mean, first = record.score(METRIC), record.first_score(METRIC)
    assert mean is not None
    assert first is not None
    assert (mean.value, first.value) == (pytest.approx(0.92), 0.90)
    assert record.point(METRIC) == (pytest.approx(-0.92), 100 * 2**20)
    assert trial(0).seeds == 0


def test_what_is_settled_is_not_repeated() -> None:
    records = [point(0, 0.6, 100), point(1, 0.8, 200), point(2, 0.3, 300), *filler(20)]
    assert Order(records, METRIC, KNOBS).open_pairs() == []
    assert next_repeat(records, METRIC, KNOBS, "auto") is None
    assert next_repeat([], METRIC, KNOBS, "auto") is None


def test_neighbours_and_whoever_may_beat_the_front_are_repeated() -> None:
    records = [
        point(0, 0.60, 100),
        point(1, 0.80, 200),
        point(2, 0.81, 300),  # hardly better than its neighbour
        point(3, 0.795, 250),  # hardly worse than what beats it
        point(4, 0.50, 250),
        *filler(20),
    ]
    pairs = Order(records, METRIC, KNOBS).open_pairs()
    assert sorted((p.best.number, p.rival.number) for p in pairs) == [(1, 3), (2, 1)]
    chosen, further = next_repeat(records, METRIC, KNOBS, "auto") or (None, 0)
    assert chosen is not None
    assert (chosen.number, further) == (1, 1)  # on the front, and in the closest pair
    second, _ = next_repeat(records, METRIC, KNOBS, "auto", running=[1]) or (None, 0)
    assert second is not None
    assert second.number == 2  # who is on the front comes before who is not


def test_one_accuracy_by_promise_has_no_order() -> None:
    records = [point(0, 0.80, 100), point(1, 0.80, 200), *filler(20)]
    exact = replace(records[1], config=trial(1, {**records[0].config, "chunks": 4}).config)
    assert next_repeat([records[0], exact, *filler(20)], METRIC, KNOBS, "auto") is None
    assert next_repeat(records, METRIC, KNOBS, "auto") is not None


def test_a_twin_that_kept_its_luck_is_repeated_too() -> None:
    lucky = point(0, 0.80, 100, 0.60, 0.61)
    twin = replace(point(1, 0.80, 200), config=trial(1, {"rate": 1.0, "chunks": 4}).config)
    records = [lucky, twin, *filler(20)]
    found = next_repeat(records, METRIC, KNOBS, "auto")
    assert found is not None
    assert found[0].number == 1
    after = settle(records, lambda number, further: (0.60, 0.61, 0.61)[further - 1])
    assert [record.number for record in front(after, METRIC)] == [0]


def test_a_lucky_point_leaves_the_front() -> None:
    truth = {0: 0.80, 1: 0.78, 2: 0.60}
    rng = random.Random(1)
    lucky = [point(0, 0.80, 200), point(1, 0.83, 300), point(2, 0.60, 100), *filler(30)]
    assert [r.number for r in front(lucky, METRIC)] == [2, 0, 1]
    settled = settle(lucky, lambda number, _: truth[number] + rng.gauss(0.0, 0.004))
    assert [r.number for r in front(settled, METRIC)] == [2, 0]
    assert [r.number for r in first_front(settled, METRIC)] == [2, 0, 1]
    text = repeats_sentence(settled, METRIC, KNOBS)
    assert "trial 1 left the front" in text
    assert [r.seeds for r in settled if r.number == 2] == [1]
    mean = settled[1].score(METRIC)
    assert mean is not None
    assert max(optimism(settled, METRIC)) == pytest.approx(0.83 - mean.value)


def test_a_trial_that_was_beaten_by_luck_joins_the_front() -> None:
    metric = Metric(name="accuracy", maximize=False)
    poor = [point(100 + place, 0.9, 490) for place in range(20)]
    records = [point(0, 0.30, 200), point(1, 0.31, 300), *poor]
    truth = {0: 0.33, 1: 0.29}
    known = {record.number: record for record in records}
    while (found := next_repeat(list(known.values()), metric, KNOBS, "auto")) is not None:
        known[found[0].number] = repeated(found[0], truth[found[0].number])
    after = list(known.values())
    assert [r.number for r in first_front(after, metric)][-1] == 0
    assert {r.number for r in front(after, metric)} >= {0, 1}
    assert "trial 1 joined the front" in repeats_sentence(after, metric, KNOBS)


def test_repeats_end_at_four_seeds_or_a_third_of_the_trainings() -> None:
    same = [point(0, 0.80, 200), point(1, 0.801, 300)]
    whole = settle([*same, *filler(40)], lambda number, _: 0.80 + 0.001 * number)
    assert [r.seeds for r in whole[:2]] == [MOST_SEEDS, MOST_SEEDS]
    assert "not settled is the order of 1 and 0" in repeats_sentence(whole, METRIC, KNOBS)
    short = settle([*same, *filler(7)], lambda number, _: 0.80 + 0.001 * number)
    assert sum(len(r.repeats) for r in short) == 3
    assert next_repeat(short, METRIC, KNOBS, "auto") is None


def test_a_number_repeats_the_front_that_often_settled_or_not() -> None:
    records = [point(0, 0.60, 100), point(1, 0.80, 200), point(2, 0.30, 300)]
    after = settle(records, lambda number, _: (0.6, 0.8)[number], "2")
    assert [r.seeds for r in after] == [3, 3, 1]
    assert "the front stayed as it was; the order is settled" in repeats_sentence(
        after, METRIC, KNOBS
    )


def test_repeats_that_fail_are_counted_but_not_averaged() -> None:
    records = [point(0, 0.80, 200), point(1, 0.801, 300), *filler(40)]
    known = {record.number: record for record in records}
    while (found := next_repeat(list(known.values()), METRIC, KNOBS, "auto")) is not None:
        record, further = found
        failed = Repetition(seed=7 + further, started=0.0, outcome=OutOfMemory(phase=Phase.FIRST))
        known[record.number] = replace(record, repeats=(*record.repeats, failed))
    assert [len(known[n].repeats) for n in (0, 1)] == [MOST_SEEDS - 1] * 2
    assert known[1].score(METRIC) == known[1].first_score(METRIC)
    text = repeats_sentence(list(known.values()), METRIC, KNOBS)
    assert "6 trainings with further seeds, of which 6 did not complete" in text


def test_without_standard_errors_everything_is_open_until_seeds_tell() -> None:
    bare = [
        replace(r, outcome=replace(r.outcome, scores={"accuracy": Score(value=v)}))
        for r, v in ((point(0, 0.6, 100), 0.6), (point(1, 0.8, 200), 0.8))
    ]
    records = [*bare, *filler(20)]
    assert Order(records, METRIC, KNOBS).half(*bare) == math.inf
    after = settle(records, lambda number, further: (0.6, 0.8)[number] + 0.001 * further)
    assert sum(len(r.repeats) for r in after) <= 4
    assert Order(after, METRIC, KNOBS).open_pairs() == []


def test_the_rule_gives_back_what_luck_put_on_the_front() -> None:
    """Over many searches: repeats make the shown scores honest, and the best one truly better."""
    gaps: dict[str, list[float]] = {"first": [], "mean": []}
    for seed in range(40):
        rng = random.Random(seed)
        truth = [0.7 + 0.1 * rng.random() for _ in range(30)]
        found = [
            point(n, t + rng.gauss(0.0, 0.02), 100 + 10 * n, chunks=1) for n, t in enumerate(truth)
        ]
        found = [
            replace(r, outcome=scored(r.first_score(METRIC).value, 100 + 10 * r.number, 0.02))
            for r in found
        ]
        after = settle(found, lambda n, _, t=truth, g=rng: t[n] + g.gauss(0.0, 0.02))
        for name, records in (("first", found), ("mean", after)):
            best = front(records, METRIC)[-1]
            shown = best.score(METRIC)
            assert shown is not None
            gaps[name].append(shown.value - truth[best.number])
    assert statistics.fmean(gaps["first"]) > 0.01
    assert statistics.fmean(gaps["mean"]) < 0.7 * statistics.fmean(gaps["first"])


def test_a_recording_says_what_can_be_repeated() -> None:
    records = [point(0, 0.80, 200), point(1, 0.801, 300), *filler(20)]
    found = next_repeat(records, METRIC, KNOBS, "auto", knows=lambda r, _: r.number == 1)
    assert found is not None
    assert found[0].number == 1
    assert next_repeat(records, METRIC, KNOBS, "auto", knows=lambda *_: False) is None


def test_what_is_typed_is_checked() -> None:
    assert [checked_repeats(text, "autotune") for text in ("off", "", "auto", "02")] == [
        "", "", "auto", "2"
    ]  # fmt: skip
    for text in ("0", "-1", "many"):
        with pytest.raises(BadValue, match="how often"):
            checked_repeats(text, "autotune")
    with pytest.raises(BadValue, match="engine tune"):
        checked_repeats("auto", "tune")
    assert checked_repeats("off", "tune") == ""


def test_a_search_leaves_time_to_repeats() -> None:
    spec = replace(make_spec(), time_limit=100.0)
    assert search_seconds(spec) == 100.0
    assert search_seconds(replace(spec, repeats="auto")) == 75.0
    assert search_seconds(replace(make_spec(), repeats="auto")) is None
