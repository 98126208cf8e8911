"""Intervals that hold what they promise, narrow with data, and answer before there is any."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import t as student

from autotune.core.units import GIB, MIB
from autotune.memory.calibrate import Calibration, Interval, student_quantile


@pytest.mark.parametrize("freedom", [3, 5, 13, 100])
@pytest.mark.parametrize("probability", [0.9, 0.95, 0.975])
def test_quantiles_are_those_of_student(probability: float, freedom: int) -> None:
    exact = student.ppf(probability, freedom)
    assert student_quantile(probability, freedom) == pytest.approx(exact, rel=0.01)
    assert student_quantile(1 - probability, freedom) == pytest.approx(-exact, rel=0.01)


WORLDS = {
    "nothing missed": (0.0, 1.0, 0.001),
    "a context of half a GiB": (512 * MIB, 1.0, 0.01),
    "a share and an amount": (20 * MIB, 1.06, 0.02),
    "noisy": (16 * MIB, 1.02, 0.05),
}


def measure(world: str, rehearsed: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    fixed, factor, noise = WORLDS[world]
    error = rng.normal(0, noise, rehearsed.shape)
    return fixed + factor * rehearsed + error * rehearsed


@pytest.mark.parametrize("world", WORLDS)
def test_after_ten_trials_the_interval_covers_what_it_says(world: str) -> None:
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(200):
        rehearsed = np.exp(rng.uniform(np.log(0.2), np.log(16), 30)) * GIB
        measured = measure(world, rehearsed, rng)
        known = list(zip(rehearsed[:10], measured[:10], strict=True))
        calibration = Calibration(known)
        covered += [
            b in calibration.predict(a)
            for a, b in zip(rehearsed[10:], measured[10:], strict=True)
        ]  # fmt: skip
    assert np.mean(covered) >= 0.9


def test_the_interval_narrows_and_centres_with_data() -> None:
    rng = np.random.default_rng(1)
    rehearsed = np.exp(rng.uniform(np.log(0.5), np.log(8), 40)) * GIB
    measured = measure("a share and an amount", rehearsed, rng)
    pairs = list(zip(rehearsed, measured, strict=True))
    widths = []
    for count in (0, 5, 40):
        interval = Calibration(pairs[:count]).predict(4 * GIB)
        widths.append(interval.high - interval.low)
    assert widths[0] > widths[1] > widths[2]
    middle = Calibration(pairs).predict(4 * GIB).middle
    assert middle == pytest.approx(20 * MIB + 1.06 * 4 * GIB, rel=0.01)


def test_without_measurements_it_answers_with_a_wide_interval() -> None:
    interval = Calibration().predict(2 * GIB)
    assert interval.low < 2 * GIB < interval.high
    assert interval.high > 1.05 * 2 * GIB


def test_pairs_that_measure_nothing_are_left_out() -> None:
    assert Calibration([(0, 1), (1, 0), (GIB, GIB)]).count == 1


def test_the_chance_of_more_is_that_of_the_ends() -> None:
    interval = Interval(low=2 * GIB, middle=3 * GIB, high=5 * GIB)
    assert interval.chance_above(3 * GIB) == 0.5
    assert interval.chance_above(2 * GIB) == pytest.approx(0.95)
    assert interval.chance_above(5 * GIB) == pytest.approx(0.05)
    assert interval.chance_above(5 * GIB, coverage=0.5) == pytest.approx(0.25)
    assert interval.chance_above(8 * GIB) < 0.01
    known = Interval(low=GIB, middle=GIB, high=GIB)
    assert (known.chance_above(GIB - 1), known.chance_above(GIB)) == (1.0, 0.0)
