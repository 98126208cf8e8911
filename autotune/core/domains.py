"""Domains: the values that a knob may take, and how a search space narrows them.

A knob declares every value that its code implements; a space may only narrow. `Choice` is for
names and for numbers that are not evenly spread, `Int` and `Float` are ranges.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Value = str | int | float


@dataclass(frozen=True, slots=True)
class Choice:
    """A finite domain.

    Raises:
        ValueError: If there is no value, or one stands twice.
    """

    values: tuple[Value, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("a domain needs at least one value")
        if len(set(self.values)) != len(self.values):
            raise ValueError(f"a domain holds each value once, but got {self.values}")

    def __contains__(self, value: object) -> bool:
        # Asked thousands of times for a proposal. Values are unique: the first equal one decides.
        if value not in self.values:
            return False
        return type(value) is type(self.values[self.values.index(value)])

    @property
    def size(self) -> int:
        """Number of values."""
        return len(self.values)

    def grid(self, points: int = 0) -> tuple[Value, ...]:
        """Return the values; `points` is for ranges and ignored here."""
        return self.values

    def describe(self) -> str:
        """List the values: `none, full`."""
        return ", ".join(str(value) for value in self.values)


@dataclass(frozen=True, slots=True)
class Int:
    """Whole numbers from `low` to `high`, both included.

    Attributes:
        low: Least value.
        high: Greatest value.
        step: Distance of neighbours; must be 1 if `log`.
        log: Whether ratios matter, not differences.

    Raises:
        ValueError: If the range is empty or `log` meets a low below 1.
    """

    low: int
    high: int
    step: int = 1
    log: bool = False

    def __post_init__(self) -> None:
        _check_range(self.low, self.high, log=self.log)
        if self.step < 1 or (self.log and self.step != 1):
            raise ValueError(f"step must be at least 1, and 1 if log, but got {self.step}")

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, int) or isinstance(value, bool):
            return False
        return self.low <= value <= self.high and (value - self.low) % self.step == 0

    @property
    def size(self) -> int:
        """Number of values."""
        return (self.high - self.low) // self.step + 1

    def grid(self, points: int = 10) -> tuple[Value, ...]:
        """Return at most `points` values spread over the range, both ends included."""
        everything = range(self.low, self.high + 1, self.step)
        if len(everything) <= points:
            return tuple(everything)
        return tuple(
            sorted(
                {everything[round(i * (len(everything) - 1) / (points - 1))] for i in range(points)}
            )
        )

    def describe(self) -> str:
        """Show the range: `1 … 64`."""
        return f"{self.low} … {self.high}"


@dataclass(frozen=True, slots=True)
class Float:
    """Real numbers from `low` to `high`, both included.

    Raises:
        ValueError: If the range is empty or `log` meets a low that is not positive.
    """

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        _check_range(self.low, self.high, log=self.log)

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, int | float) or isinstance(value, bool):
            return False
        return self.low <= value <= self.high

    @property
    def size(self) -> None:
        """None: a range of reals cannot be counted."""
        return None

    def grid(self, points: int = 10) -> tuple[Value, ...]:
        """Return `points` values spread over the range, both ends included."""
        shares = [i / (points - 1) for i in range(points)]
        if self.log:
            ratio = self.high / self.low
            return tuple(self.low * ratio**share for share in shares)
        return tuple(self.low + share * (self.high - self.low) for share in shares)

    def describe(self) -> str:
        """Show the range: `0.0001 … 0.1, log`."""
        return f"{self.low:g} … {self.high:g}" + (", log" if self.log else "")


Domain = Choice | Int | Float


def contains(domain: Domain, part: Domain) -> bool:
    """Whether every value of `part` lies in `domain`: what a space may narrow to."""
    if isinstance(part, Choice):
        return all(value in domain for value in part.values)
    return type(part) is type(domain) and part.low in domain and part.high in domain


def parse_value(domain: Domain, text: str) -> Value | None:
    """Read `text`, as typed after `--set knob=`, as a value of `domain`; None if it is none."""
    if isinstance(domain, Choice):
        matches = [value for value in domain.values if str(value) == text]
        matches += [v for v in domain.values if not isinstance(v, str) and _number(text) == v]
        return matches[0] if matches else None
    number = _number(text)
    if number is None:
        return None
    value: Value = int(number) if isinstance(domain, Int) and number == int(number) else number
    return value if value in domain else None


def narrow(domain: Domain, values: Sequence[Value]) -> Choice | None:
    """Return `domain` narrowed to `values`, or None if one of them is outside."""
    return Choice(tuple(values)) if all(value in domain for value in values) else None


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _check_range(low: float, high: float, *, log: bool) -> None:
    if not low <= high:
        raise ValueError(f"low <= high must hold, but got low={low}, high={high}")
    if log and low <= 0:
        raise ValueError(f"a log range must start above 0, but got low={low}")
