"""What is left of a run, how long trials take, and how many rehearsals that pays for."""

from __future__ import annotations

import math

import numpy as np
import pytest

from autotune.core.config import Config
from autotune.search.deadline import Deadline
from autotune.search.features import Features
from autotune.search.findings import Finding
from autotune.search.pace import Pace
from autotune.search.rehearsals import Rehearsals
from tests.benchmarks.search_problems import SCALING, step_seconds

FEATURES = Features(SCALING.space)
SLOW = Config({"checkpointing": "full", "micro_batch": 1}, SCALING.space.knobs)


def finding(config: Config, took: float) -> Finding:
    return Finding(codes=FEATURES.codes(config), loss=1.0, peak_bytes=1.0, took=took)


def test_without_limits_there_is_no_end():
    deadline = Deadline()
    deadline.told(0, 100.0)
    assert deadline.seconds_left(50.0) == deadline.trials_left(3) == math.inf
    assert deadline.initial(10, 5.0) == 10
    assert deadline.allows_two(1e9)


def test_trials_and_seconds_are_counted_for_all_slots_together():
    deadline = Deadline(20, 100.0, 2)
    for number in range(3):
        deadline.told(number, 30.0)
    assert deadline.seconds_left(running=40.0) == 2 * 100 - 3 * 30 - 40
    assert deadline.trials_left(running=2) == 20 - 3 - 2
    assert not deadline.allows_two(30.0, running=40.0)
    assert deadline.allows_two(10.0, running=40.0)


def test_what_passes_between_trials_counts_but_not_a_night():
    deadline = Deadline(0, 1000.0)
    began = 5000.0
    for number, gap in enumerate((0.0, 4.0, 4.0, 40_000.0, 4.0)):
        began += gap
        deadline.told(number, 20.0, began)
        began += 20.0
    assert deadline.between_seconds == 4.0
    assert deadline.seconds_left() == 1000 - 5 * 24


@pytest.mark.parametrize(
    ("trials", "limit", "seconds", "initial"),
    [
        (0, None, 0.0, 10),
        (18, None, 0.0, 6),
        (18, 100.0, 0.0, 6),
        (0, 240.0, 10.0, 8),
        (9, 1, 1, 4),
    ],
)
def test_a_short_run_spreads_fewer_trials_first(trials, limit, seconds, initial):
    assert Deadline(trials, limit).initial(10, seconds) == initial


def test_an_exact_knob_is_expected_to_cost_time_before_anything_was_measured():
    fast, slow = Pace(FEATURES).seconds(
        np.stack([FEATURES.codes(SCALING.space.baseline()), FEATURES.codes(SLOW)])
    )
    assert slow > fast


def test_pace_learns_which_settings_are_fast_and_how_long_trials_take():
    rng = np.random.default_rng(0)
    drawn = [FEATURES.config(row) for row in FEATURES.draw(rng, 200)]
    configs = [c for c in drawn if SCALING.space.legal(c, SCALING.context)]
    truth = np.array([step_seconds(SCALING.values(config)) for config in configs])
    pace = Pace(FEATURES)
    half = len(configs) // 2
    pace.learn([finding(c, t) for c, t in zip(configs[:half], truth[:half], strict=True)])
    expected = pace.seconds(np.stack([FEATURES.codes(config) for config in configs[half:]]))
    error = np.log(expected / truth[half:])
    assert np.std(error) < 0.5 * np.std(np.log(truth[half:]))
    assert pace.typical == pytest.approx(np.median(truth[:half]))


def test_rehearsals_follow_from_what_trials_take_not_from_a_clock():
    asked = []
    rehearsals = Rehearsals(lambda config: asked.append(config) or 7, seconds=10.0)
    rehearsals.begin(60.0)
    assert rehearsals.peak(SLOW) is None  # a trial is as quick as asking
    rehearsals.begin(10.0 / 0.05 * 2)
    assert [rehearsals.peak(SLOW) for _ in range(3)] == [7, 7, None]
    assert asked == [SLOW]
    assert rehearsals.affordable(0.0) == 0
    assert rehearsals.affordable(1000.0) == 5


def test_rehearsals_that_cost_nothing_are_not_counted():
    rehearsals = Rehearsals(lambda config: 7)
    rehearsals.begin(0.0)
    assert {rehearsals.peak(SLOW) for _ in range(100)} == {7}
    none = Rehearsals()
    none.begin(1e9)
    assert none.peak(SLOW) is None
    assert none.affordable(1e9) == none.left == 0
