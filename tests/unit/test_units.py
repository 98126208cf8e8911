"""Bytes and seconds as typed and as shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.core.errors import BadValue
from autotune.core.units import (
    GIB,
    format_duration,
    format_gb,
    format_gib,
    gib,
    parse_bytes,
    parse_duration,
)


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("16GB", 16 * 10**9),
        ("16GiB", 16 * 2**30),
        ("14.9 gib", round(14.9 * 2**30)),
        (" 500 MB ", 500 * 10**6),
        ("1kb", 1000),
        ("1KiB", 1024),
        ("2TB", 2 * 10**12),
        ("7b", 7),
    ],
)
def test_amounts_are_read_in_their_own_unit(text, amount):
    assert parse_bytes(text) == amount


@pytest.mark.parametrize(
    ("text", "message", "help_text"),
    [
        ("16", "'16' has no unit: 16GB is 14.90 GiB, 16GiB is 17.2 GB", "write 16GB"),
        ("16 bananas", "'bananas' in '16 bananas' is not a unit of memory", "known: B, kB"),
        ("0GB", "'0GB' is no memory at all", "like 16GB"),
        ("-4GB", "'-4GB' is not an amount of memory", "like 16GB"),
        ("", "'' is not an amount of memory", "like 16GB"),
        ("GB", "'GB' is not an amount of memory", "like 16GB"),
    ],
)
def test_wrong_amounts_say_what_to_write(text, message, help_text):
    with pytest.raises(BadValue) as caught:
        parse_bytes(text)
    assert caught.value.message == message
    assert help_text in caught.value.help


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("30m", 1800),
        ("2h", 7200),
        ("1h30m", 5400),
        ("1 h 30 min", 5400),
        ("1d", 86400),
    ],
)
def test_durations_are_read(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["90", "", "soon", "3 weeks", "1h later", "h"])
def test_wrong_durations_say_what_to_write(text):
    with pytest.raises(BadValue, match="is not a duration") as caught:
        parse_duration(text)
    assert caught.value.help == "write it like 90s, 30m, 2h or 1h30m"


def test_no_time_is_refused():
    with pytest.raises(BadValue, match="'0s' is no time at all"):
        parse_duration("0s")


def test_memory_is_shown_with_digits_enough():
    assert format_gib(16 * 10**9) == "14.90 GiB"
    assert format_gib(3 * 2**20) == "0.003 GiB"
    assert gib(GIB, 1) == "1.0"
    assert format_gb(16 * 10**9) == "16.0 GB"
    assert format_gb(5 * 10**6) == "5.0 MB"
    assert format_gb(350 * 10**6) == "350 MB"


@pytest.mark.parametrize(
    ("seconds", "shown"), [(52, "0:52"), (59.7, "1:00"), (5040, "1:24:00"), (-1, "0:00")]
)
def test_durations_are_shown(seconds, shown):
    assert format_duration(seconds) == shown


@given(st.integers(1, 10**15))
def test_bytes_come_back(amount):
    assert parse_bytes(f"{amount}B") == amount


@given(st.text(max_size=20))
def test_any_text_is_an_amount_or_an_error(text):
    help_text = "none"
    try:
        assert parse_bytes(text) > 0
    except BadValue as error:
        help_text = error.help
    assert help_text
