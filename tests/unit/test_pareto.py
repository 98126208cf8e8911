"""Fronts against brute force, hypervolume against counting, knees against what one can see."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.core.outcome import Crashed
from autotune.core.pareto import (
    Picks,
    dominates,
    front,
    front_indices,
    hypervolume,
    knee,
    picks,
    reference_point,
)
from tests.knobs import ACCURACY, LOSS, completed, ended, out_of_memory

COORDINATES = st.integers(0, 8)
POINTS = st.lists(st.tuples(COORDINATES, COORDINATES), max_size=30)


@given(POINTS)
def test_the_front_is_what_no_point_dominates(points):
    slow = {p for p in points if not any(dominates(q, p) for q in points)}
    found = front_indices(points)
    assert {points[i] for i in found} == slow
    assert len(found) == len(slow)
    assert all(points.index(points[i]) == i for i in found)
    assert [points[i][1] for i in found] == sorted(points[i][1] for i in found)


def test_dominance_needs_one_better_objective():
    assert dominates((1, 2), (1, 3))
    assert not dominates((1, 2), (1, 2))
    assert not dominates((1, 3), (2, 2))


@given(POINTS)
def test_hypervolume_counts_the_cells_that_are_dominated(points):
    cells = {
        (x, y) for a, b in points for x in range(a, 9) for y in range(b, 9)
    }  # fmt: skip
    assert hypervolume(points, (9, 9)) == pytest.approx(len(cells))


def test_points_beyond_the_reference_add_nothing():
    assert hypervolume([(1.0, 2.0), (5.0, 5.0)], (3.0, 3.0)) == pytest.approx(2.0)
    assert hypervolume([(5.0, 5.0)], (3.0, 3.0)) == 0.0


def test_the_knee_bulges_towards_the_ideal_whatever_the_units():
    points = [(0.0, 10.0), (1.0, 2.0), (6.0, 1.0), (10.0, 0.0)]
    assert knee(points) == 1
    assert knee([(a * 1e-6 + 5, b * 2**30) for a, b in points]) == 1
    assert knee(points[::-1]) == 2


def test_a_front_that_bulges_away_has_its_most_accurate_end_as_knee():
    assert knee([(10.0, 0.0), (9.0, 9.0), (0.0, 10.0)]) == 2
    assert knee([(2.0, 1.0), (1.0, 2.0)]) == 1
    assert knee([(3.0, 3.0)]) == 0


@given(POINTS.filter(len))
def test_the_knee_is_on_the_front_it_is_asked_for(points):
    best = [points[i] for i in front_indices(points)]
    assert best[knee(best)] in best


def records():
    return [
        completed(0, loss=1.0, peak=900, limit=1000),
        completed(1, loss=1.2, peak=300, limit=1000),
        completed(2, loss=5.0, peak=100, limit=1000),
        completed(3, loss=1.2, peak=300, limit=1000),
        completed(4, loss=2.0, peak=800, limit=1000),
        completed(5, loss=0.1, peak=1001, limit=1000),
        completed(6, loss=math.nan, peak=10, limit=1000),
        out_of_memory(7, limit=1000),
        ended(8, Crashed(), limit=1000),
        ended(9, None, limit=1000),
    ]


def test_a_front_has_feasible_trials_once_by_ascending_memory():
    assert [r.number for r in front(records(), LOSS)] == [2, 1, 0]
    assert [r.number for r in front(records()[::-1], LOSS)] == [2, 1, 0]


def test_picks_are_ends_and_knee():
    found = picks(records(), LOSS)
    assert found.best_accuracy.number == 0
    assert found.knee.number == 1
    assert found.least_memory.number == 2


def test_picks_of_one_trial_are_the_same_and_of_none_are_none():
    alone = completed(4)
    assert picks([alone], LOSS) == Picks(
        best_accuracy=alone, knee=alone, cheapest=alone, least_memory=alone
    )
    assert picks(records()[7:], LOSS) == Picks(
        best_accuracy=None, knee=None, cheapest=None, least_memory=None
    )


def test_metrics_to_maximise_turn_round():
    better = completed(0, loss=0.9, peak=10, metric=ACCURACY)
    worse = completed(1, loss=0.7, peak=20, metric=ACCURACY)
    assert front([better, worse], ACCURACY) == [better]
    loss, _ = reference_point([better, worse], ACCURACY)
    assert loss == pytest.approx(-0.7 + 0.02)


def test_every_feasible_trial_counts_against_the_reference():
    found = reference_point(records(), LOSS)
    assert found == (pytest.approx(5.4), 1000.0)
    points = [r.point(LOSS) for r in front(records(), LOSS)]
    assert all(hypervolume([point], found) > 0 for point in points)
    assert reference_point(records()[5:], LOSS) is None
    assert reference_point([completed(0, loss=2.0)], LOSS)[0] == pytest.approx(2.2)
