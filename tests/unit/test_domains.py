"""Domains contain, narrow, and read text."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.core.domains import Choice, Float, Int, contains, narrow, parse_value

NAMES = Choice(("none", "full"))
BITS = Choice((16, 8, 4))
SHARES = Choice((0.0, 0.25, 0.5))


def test_a_choice_tells_types_apart():
    assert 8 in BITS
    assert 8.0 not in BITS
    assert "8" not in BITS
    assert True not in Choice((1, 2))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Choice(()),
        lambda: Choice((1, 1)),
        lambda: Int(3, 2),
        lambda: Int(0, 8, log=True),
        lambda: Int(1, 8, step=0),
        lambda: Int(1, 8, step=2, log=True),
        lambda: Float(1.0, 0.5),
        lambda: Float(0.0, 1.0, log=True),
        lambda: Float(math.nan, 1.0),
    ],
)
def test_impossible_domains_are_refused(make):
    with pytest.raises(ValueError, match=r"domain|low|log|step"):
        make()


def test_ranges_contain_their_ends_and_steps():
    numbers = Int(2, 10, step=4)
    assert [n for n in range(12) if n in numbers] == [2, 6, 10]
    assert numbers.size == 3
    assert True not in Int(0, 1)
    assert 0.5 in Float(0.5, 1.0)
    assert "0.5" not in Float(0.5, 1.0)


@given(st.integers(-50, 50), st.integers(0, 200), st.integers(1, 7), st.integers(2, 12))
def test_grids_of_whole_numbers_lie_inside_and_reach_the_low_end(low, width, step, points):
    domain = Int(low, low + width, step)
    grid = domain.grid(points)
    assert all(value in domain for value in grid)
    assert grid[0] == low
    assert list(grid) == sorted(set(grid))
    assert len(grid) == min(points, domain.size)


@given(st.floats(1e-6, 1e3), st.floats(1e-6, 1e3), st.booleans(), st.integers(2, 12))
def test_grids_of_reals_spread_from_end_to_end(a, b, log, points):
    domain = Float(min(a, b), max(a, b), log)
    grid = domain.grid(points)
    assert len(grid) == points
    assert grid[0] == pytest.approx(domain.low)
    assert grid[-1] == pytest.approx(domain.high)
    assert domain.size is None


def test_domains_describe_themselves():
    assert NAMES.describe() == "none, full"
    assert Int(1, 64).describe() == "1 … 64"
    assert Float(1e-4, 0.1, log=True).describe() == "0.0001 … 0.1, log"


@pytest.mark.parametrize(
    ("domain", "text", "value"),
    [
        (NAMES, "full", "full"),
        (NAMES, "half", None),
        (BITS, "8", 8),
        (BITS, "8.0", 8),
        (BITS, "eight", None),
        (SHARES, "0", 0.0),
        (SHARES, "0.30", None),
        (Int(1, 9), "3", 3),
        (Int(1, 9), "3.0", 3),
        (Int(1, 9), "3.5", None),
        (Int(1, 9), "10", None),
        (Float(0.1, 1.0), "0.25", 0.25),
        (Float(0.1, 1.0), "nan", None),
        (Float(0.1, 1.0), "much", None),
    ],
)
def test_typed_values_are_read_as_the_domain_spells_them(domain, text, value):
    found = parse_value(domain, text)
    assert found == value
    assert type(found) is type(value)


def test_narrowing_never_adds():
    assert narrow(BITS, [8, 4]) == Choice((8, 4))
    assert narrow(BITS, [8, 2]) is None
    assert contains(Int(1, 64, log=True), Int(4, 16))
    assert not contains(Int(1, 64), Int(4, 65))
    assert not contains(Float(0.0, 1.0), Int(0, 1))
    assert contains(Float(0.0, 1.0), Choice((0.0, 0.5)))
