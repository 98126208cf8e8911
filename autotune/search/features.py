"""Configurations as numbers: codes to draw and change them, features for a surrogate.

A *code* is one number per knob that varies: the rank of a value of a choice, or the value itself of
a range. A *feature* is what distances are taken between: a rank or a value scaled to 0 … 1, on a
logarithmic scale where the range says so, and for a choice among three or more names one column per
name, so that all names are equally far apart. A knob that another one switches off stands at its
neutral value, which changes nothing; there is nothing to impute.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autotune.core.config import Config
from autotune.core.domains import Choice, Domain, Float, Int, Value
from autotune.core.knob import Knob, Numerics
from autotune.core.space import Space

Array = NDArray[np.float64]
Columns = NDArray[np.intp]

_NEAR = 0.08
"""Standard deviation of a small step, as a share of a range."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """How one knob is coded.

    Attributes:
        knob: The knob.
        domain: What the space lets it be.
        values: Values by code for a choice, numbers ascending; empty for a range.
        ordered: Whether neighbouring codes are alike.
        table: Features by code for a choice, `[values, width]`; empty for a range.
        lean: Leanness by code for a choice, `[values]`; empty for a range.
    """

    knob: Knob
    domain: Domain
    values: tuple[Value, ...]
    ordered: bool
    table: Array
    lean: Array

    def code(self, value: Value) -> float:
        """Return the code of a value of the domain."""
        return float(self.values.index(value) if self.values else value)

    def value(self, code: float) -> Value:
        """Return the value that a code stands for."""
        if self.values:
            return self.values[int(code)]
        return int(code) if isinstance(self.domain, Int) else float(code)

    def position(self, codes: Array) -> Array:
        """Return codes scaled to 0 … 1."""
        if isinstance(self.domain, Choice):
            return codes / (len(self.values) - 1)
        low, high = float(self.domain.low), float(self.domain.high)
        if self.domain.log:
            return np.asarray(np.log(codes / low) / math.log(high / low))
        return np.asarray((codes - low) / (high - low))

    def at(self, position: Array) -> Array:
        """Return the codes nearest to positions; those beyond the ends are reflected."""
        inside = 1.0 - np.abs(1.0 - np.abs(position) % 2.0)
        if isinstance(self.domain, Choice):
            return np.asarray(np.rint(inside * (len(self.values) - 1)))
        low, high = float(self.domain.low), float(self.domain.high)
        value = low * (high / low) ** inside if self.domain.log else low + inside * (high - low)
        if isinstance(self.domain, Int):
            value = low + np.rint((value - low) / self.domain.step) * self.domain.step
        return np.asarray(np.clip(value, low, high))

    def draw(self, rng: np.random.Generator, count: int) -> Array:
        """Return uniform codes."""
        if isinstance(self.domain, Choice):
            return rng.integers(len(self.values), size=count).astype(float)
        return self.at(rng.random(count))

    def step(self, rng: np.random.Generator, codes: Array) -> Array:
        """Return codes beside the given ones, half of them anywhere."""
        anywhere = self.draw(rng, len(codes))
        if not self.ordered:
            return anywhere
        if isinstance(self.domain, Choice):
            size = rng.choice((-1.0, 1.0), size=len(codes)) / (len(self.values) - 1)
        else:
            size = rng.normal(0.0, _NEAR, len(codes))
        near = self.at(self.position(codes) + size)
        return np.where(rng.random(len(codes)) < 0.5, near, anywhere)

    def features(self, codes: Array) -> Array:
        """Return the features of codes `[n]`, `[n, width]`."""
        found = self.table[codes.astype(int)] if self.values else self.position(codes)[:, None]
        return np.asarray(found)

    @property
    def width(self) -> int:
        """Number of features."""
        return self.table.shape[1] if self.values else 1

    def leanness(self, codes: Array) -> Array:
        """Return how near codes are to the value that needs least memory, 0 … 1."""
        if isinstance(self.domain, Choice):
            return np.asarray(self.lean[codes.astype(int)])
        low, high = float(self.domain.low), float(self.domain.high)
        leanest = np.array([min(max(float(self.knob.leanest), low), high)])
        return np.asarray(1.0 - np.abs(self.position(codes) - self.position(leanest)))


class Features:
    """The knobs of a space that vary, as columns of codes.

    Args:
        space: The space.

    Attributes:
        columns: One for each knob that varies, in the order of the space.
        lossy: Indices of the columns that may change accuracy.
        exact: Indices of those that do not.
    """

    def __init__(self, space: Space) -> None:
        self._space = space
        self._fixed = {n: d.grid()[0] for n, d in space.domains.items() if d.size == 1}
        self.columns = tuple(
            _column(space.knob(name), domain)
            for name, domain in space.domains.items()
            if domain.size != 1
        )
        exact = [column.knob.numerics is Numerics.EXACT for column in self.columns]
        self.lossy: Columns = np.flatnonzero(~np.array(exact, dtype=bool))
        self.exact: Columns = np.flatnonzero(np.array(exact, dtype=bool))

    @property
    def everything(self) -> Columns:
        """Indices of all columns."""
        return np.arange(len(self.columns))

    def config(self, codes: Array) -> Config:
        """Return the configuration of a row of codes, `[columns]`."""
        values = dict(self._fixed)
        for column, code in zip(self.columns, codes, strict=True):
            values[column.knob.name] = column.value(code)
        return Config(values, self._space.knobs)

    def codes(self, config: Config) -> Array | None:
        """Return the codes of a configuration, None if it lies outside the space."""
        values = config.complete(self._space.knobs)
        if any(name not in values for name in config):
            return None
        for name, value in values.items():
            domain = self._space.domains.get(name)
            if domain is None:
                if value != self._space.knob(name).neutral:
                    return None
            elif value not in domain:
                return None
        return np.array([column.code(values[column.knob.name]) for column in self.columns])

    def draw(self, rng: np.random.Generator, count: int) -> Array:
        """Return uniform codes, legal or not, `[count, columns]`."""
        drawn = [column.draw(rng, count) for column in self.columns]
        return np.stack(drawn, axis=1) if drawn else np.empty((count, 0))

    def changed(
        self, rng: np.random.Generator, codes: Array, which: Columns, expected: float
    ) -> Array:
        """Return codes with some knobs changed in each row.

        Args:
            rng: Of the draws.
            codes: `[n, columns]`.
            which: Indices of the columns that may change.
            expected: Expected number of changes in a row; there is at least one.
        """
        change = rng.random((len(codes), len(which))) < expected / max(1, len(which))
        change[np.arange(len(codes)), rng.integers(len(which), size=len(codes))] = True
        found = codes.copy()
        for at, index in enumerate(which):
            rows = np.flatnonzero(change[:, at])
            found[rows, index] = self.columns[index].step(rng, codes[rows, index])
        return found

    def encode(self, codes: Array, which: Columns) -> Array:
        """Return the features of some columns, `[n, features]`."""
        parts = [self.columns[index].features(codes[:, index]) for index in which]
        return np.concatenate(parts, axis=1) if parts else np.empty((len(codes), 0))

    def groups(self, which: Columns) -> Columns:
        """Return for each feature the position in `which` of the column it belongs to."""
        widths = [self.columns[index].width for index in which]
        return np.repeat(np.arange(len(which)), widths)

    def leanness(self, codes: Array) -> Array:
        """Return how lean rows are expected to be, 0 … 1, the mean over their knobs."""
        parts = [c.leanness(codes[:, index]) for index, c in enumerate(self.columns)]
        return np.asarray(np.mean(parts, axis=0))

    def menu(self, which: Columns, most: int, rng: np.random.Generator) -> Array:
        """Return settings of some columns: all of them, or the leanest, the neutral and random.

        Args:
            which: Indices of the columns.
            most: Settings, at most.
            rng: Of the random ones.

        Returns:
            `[settings, len(which)]`.
        """
        columns = [self.columns[index] for index in which]
        sizes = [len(column.domain.grid()) for column in columns]
        if math.prod(sizes) <= most and all(column.domain.size is not None for column in columns):
            axes = [[column.code(value) for value in column.domain.grid()] for column in columns]
            mesh = np.meshgrid(*axes, indexing="ij") if axes else []
            return np.stack([part.ravel() for part in mesh], 1) if mesh else np.empty((1, 0))
        drawn = np.stack([column.draw(rng, most) for column in columns], axis=1)
        for at, column in enumerate(columns):
            grid = np.array([column.code(value) for value in column.domain.grid()])
            drawn[0, at] = grid[np.argmax(column.leanness(grid))]
            if column.knob.neutral in column.domain:
                drawn[1, at] = column.code(column.knob.neutral)
        # Half of the random ones are the leanest but for a knob or two.
        near = drawn[2 : most // 2]
        keep = rng.random(near.shape) < 1.0 - 1.5 / len(columns)
        near[keep] = np.broadcast_to(drawn[0], near.shape)[keep]
        return np.unique(drawn, axis=0)


def _column(knob: Knob, domain: Domain) -> Column:
    if isinstance(domain, Int | Float):
        nothing = np.empty(0)
        return Column(
            knob=knob, domain=domain, values=(), ordered=True, table=nothing, lean=nothing
        )
    numbers = [value for value in domain.values if not isinstance(value, str)]
    ordered = len(numbers) == domain.size
    values = tuple(sorted(numbers)) if ordered else domain.values
    scale = np.linspace(0.0, 1.0, len(values))[:, None]
    names = np.eye(len(values)) / math.sqrt(2.0)
    order = knob.domain.grid()
    leanest = _rank(knob.leanest, order)
    apart = np.array([abs(_rank(value, order) - leanest) for value in values], dtype=float)
    return Column(
        knob=knob,
        domain=domain,
        values=values,
        ordered=ordered,
        table=scale if ordered or len(values) == 2 else names,
        lean=1.0 - apart / max(float(apart.max()), 1.0),
    )


def _rank(value: Value, order: Sequence[Value]) -> int:
    """Return where a value stands in the grid of a knob: at the nearest number, if it is none."""
    if value in order:
        return order.index(value)
    distances = [abs(float(value) - float(other)) for other in order]
    return distances.index(min(distances))


def rows(codes: Sequence[Array], width: int) -> Array:
    """Stack rows of codes, also none."""
    return np.stack(codes) if codes else np.empty((0, width))
