"""Numbers, in words and in digits: what a model that reads and writes can learn in seconds.

A pair such as `"forty two thousand and seven"` and `"42007"` follows from a rule, so there is
nothing to download, and whether an answer is right is beyond dispute. Where a word's digit stands
depends on the words after it, so a model has to look at all of them.
"""

from __future__ import annotations

import numpy as np

_SMALL = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen"),
    *("eighteen", "nineteen"),
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")

_SEED = 0  # the same numbers for all runs: scores of runs with other seeds stay comparable


def in_words(number: int) -> str:
    """Return the English name of a number from 0 to 999,999, as it is said, without hyphens."""
    if number >= 1000:
        thousands, rest = divmod(number, 1000)
        joint = "" if not rest else f" and {in_words(rest)}" if rest < 100 else f" {in_words(rest)}"
        return f"{in_words(thousands)} thousand{joint}"
    if number >= 100:
        hundreds, rest = divmod(number, 100)
        return f"{_SMALL[hundreds]} hundred" + (f" and {in_words(rest)}" if rest else "")
    if number >= len(_SMALL):
        tens, rest = divmod(number, 10)
        return _TENS[tens - 2] + (f" {_SMALL[rest]}" if rest else "")
    return _SMALL[number]


def numbers_in_words(count: int, digits: int) -> tuple[list[str], list[str]]:
    """Return numbers in words, and the same ones in digits, in random order, none of them twice.

    Each length from 1 to `digits` digits is drawn equally often, until its numbers run out.

    Args:
        count: How many numbers.
        digits: Most digits of a number, up to 6.
    """
    chance = np.random.default_rng(_SEED)
    found: dict[int, None] = {}
    while len(found) < count:
        length = int(chance.integers(1, digits + 1))
        lowest = 10 ** (length - 1) if length > 1 else 0
        found.setdefault(int(chance.integers(lowest, 10**length)))
    numbers = chance.permutation(list(found)).tolist()  # short ones were found first
    return [in_words(number) for number in numbers], [str(number) for number in numbers]
