"""Intervals: quantiles against scipy, coverage by simulation."""

from __future__ import annotations

import math
import random
import statistics

import pytest

from autotune.core.outcome import Score
from autotune.report.intervals import NORMAL, mean_error, score_error, student


@pytest.mark.parametrize("freedom", [1, 2, 7, 30, 31, 45, 100, 5000])
def test_quantiles_are_students(freedom: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    assert student(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-4)


def test_no_quantile_without_freedom() -> None:
    with pytest.raises(ValueError, match="at least 1 degree"):
        student(0)


def test_one_value_has_no_interval() -> None:
    assert mean_error([]) is None
    assert mean_error([1.0]) is None
    assert mean_error([2.0, 2.0, 2.0]) == 0.0


def test_interval_of_a_mean_covers_the_truth_as_often_as_it_says() -> None:
    rng = random.Random(0)
    trials, covered = 2000, 0
    for _ in range(trials):
        values = [rng.gauss(3.0, 2.0) for _ in range(5)]
        error = mean_error(values)
        assert error is not None
        covered += abs(statistics.fmean(values) - 3.0) <= error
    spread = math.sqrt(0.95 * 0.05 / trials)
    assert covered / trials == pytest.approx(0.95, abs=4 * spread)


def test_difference_of_scores_adds_their_variances() -> None:
    a, b = Score(value=0.9, stderr=0.03), Score(value=0.8, stderr=0.04)
    assert score_error(a, b) == pytest.approx(NORMAL * 0.05)
    assert score_error(a, Score(value=0.8)) is None
    assert score_error(None, b) is None
