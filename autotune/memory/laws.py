"""How the sizes of a trace follow from the micro-batch and the sequence length.

The order of events does not depend on either. The size of a tensor is a product of its dimensions,
each of which depends on one of the two at most: affine on the micro-batch, affine or square on the
sequence length. So three traces tell every size, and a fourth one, of another scale, shows that
there is nothing else to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from autotune.memory.line import Line, NotAlgebraic
from autotune.memory.splice import Spliced
from autotune.memory.trace import Scale

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Numbers = NDArray[np.int64]
    Reals = NDArray[np.float64]

TOLERANCE = 1e-3
"""Of live bytes, relative to the peak, by which what is derived may be off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Law:
    """The sizes of a line at any micro-batch and sequence length.

    Attributes:
        base: Where it was traced.
        sizes: Sizes there.
        by_row: Relative growth with each further sequence.
        by_token: Relative growth with each further token.
        square: Whether it grows with the square of the sequence length instead.
    """

    base: Scale
    sizes: Numbers
    by_row: Reals
    by_token: Reals
    square: NDArray[np.bool_]

    def at(self, scale: Scale) -> Numbers:
        """Return the sizes at a scale, of whatever depth."""
        rows = scale.micro_batch - self.base.micro_batch
        tokens = scale.sequence_length - self.base.sequence_length
        if not rows and not tokens:
            return self.sizes
        ratio = scale.sequence_length / self.base.sequence_length
        along = np.where(self.square, ratio * ratio, 1 + self.by_token * tokens)
        found: Numbers = np.rint(self.sizes * (1 + self.by_row * rows) * along).astype(np.int64)
        return found


def fixed_law(line: Line, base: Scale) -> Law:
    """Return the law of a line that was traced once: sizes are what they are."""
    zeros = np.zeros(len(line))
    return Law(base=base, sizes=line.sizes, by_row=zeros, by_token=zeros, square=zeros.astype(bool))


def with_rows(law: Law, line: Line, more: Line, rows: int) -> Law:
    """Add how sizes grow with the micro-batch.

    Args:
        law: What is known.
        line: The line that it is of.
        more: The same with another micro-batch.
        rows: That micro-batch.

    Raises:
        NotAlgebraic: If something else happens there.
    """
    _same(line, more)
    slope = (more.sizes / line.sizes - 1) / (rows - law.base.micro_batch)
    return Law(
        base=law.base, sizes=law.sizes, by_row=slope, by_token=law.by_token, square=law.square
    )


def with_tokens(law: Law, line: Line, more: Line, tokens: int) -> Law:
    """Add how sizes grow with the sequence length; see `with_rows`.

    Raises:
        NotAlgebraic: If something else happens there.
    """
    _same(line, more)
    old, new = law.base.sequence_length, tokens
    slope = (more.sizes / line.sizes - 1) / (new - old)
    square = more.sizes * old * old == line.sizes * new * new
    return Law(base=law.base, sizes=law.sizes, by_row=law.by_row, by_token=slope, square=square)


def check(spliced: Spliced, law: Law, seen: Line, scale: Scale, more: int) -> None:
    """Hold a law against a trace of another scale.

    Args:
        spliced: The line, at any depth.
        law: Its sizes.
        seen: What was traced.
        scale: Where.
        more: Blocks that it has beyond the shallow line.

    Raises:
        NotAlgebraic: If something else happens there, or live bytes differ.
    """
    places = spliced.places(more)
    line = spliced.line
    if not np.array_equal(line.kinds[places], seen.kinds):
        raise NotAlgebraic("another micro-batch or sequence length does something else")
    sizes = (law.at(scale) + more * spliced.slopes)[places]
    live = np.cumsum(seen.signs * seen.sizes)
    off = np.abs(np.cumsum(seen.signs * sizes) - live).max()
    if off > TOLERANCE * live.max():
        raise NotAlgebraic("sizes do not follow from micro-batch and sequence length")


def _same(line: Line, other: Line) -> None:
    if not np.array_equal(line.kinds, other.kinds):
        raise NotAlgebraic("another micro-batch or sequence length does something else")


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """The greatest moment of a phase.

    Attributes:
        bytes: Live then.
        cause: Number of what went on.
        parts: Bytes by number of part.
    """

    bytes: int
    cause: int
    parts: Mapping[int, int]


@dataclass(slots=True, kw_only=True)
class PhaseLaw:
    """One phase of a training at any scale.

    Attributes:
        spliced: Its events at any depth.
        law: Their sizes.
        unit: Sizes are rounded up to multiples of it.
    """

    spliced: Spliced
    law: Law
    unit: int
    _shapes: dict[int, _Shape]

    @classmethod
    def of(cls, spliced: Spliced, law: Law, unit: int) -> PhaseLaw:
        """Return the phase of a line and its law."""
        return cls(spliced=spliced, law=law, unit=unit, _shapes={})

    def peak(self, scale: Scale, more: int) -> Peak:
        """Return the greatest moment.

        Live bytes change from copy to copy of a run by one number, so among the moments of all
        copies, the greatest is in the first or in the last: two copies are enough, with what lies
        between them put in as one step.

        Args:
            scale: Micro-batch and sequence length.
            more: Blocks beyond the shallow line.
        """
        shape = self._shape(min(more, 2))
        change = self._changes(scale, more)[shape.places]
        left_out = max(0, more - 2)
        steps = change
        if left_out:
            steps = change.copy()
            for start, length in shape.seconds:
                steps[start] += left_out * int(change[start : start + length].sum())
        live = np.cumsum(steps)
        at = int(live.argmax())
        count = int(shape.parts.max()) + 1
        parts = np.bincount(shape.parts[: at + 1], weights=change[: at + 1], minlength=count)
        for start, length in shape.seconds if left_out else ():
            if start <= at:
                inside = slice(start, start + length)
                parts += left_out * np.bincount(
                    shape.parts[inside], weights=change[inside], minlength=count
                )
        return Peak(
            bytes=int(live[at]),
            cause=int(shape.causes[at]),
            parts={part: round(size) for part, size in enumerate(parts.tolist())},
        )

    def stream(self, scale: Scale, more: int) -> tuple[tuple[int, int], ...]:
        """Return allocations and frees in order; see `Rehearsal.events`.

        Raises:
            NotAlgebraic: If a storage would go twice.
        """
        spliced = self.spliced
        places = spliced.places(more)
        change = self._changes(scale, more)[places]
        real = spliced.line.moves[places] == 0
        owners = np.array(spliced.owners(more), np.int64) + 1
        gone = owners[real & (change < 0)]
        if len(np.unique(gone)) != len(gone):
            raise NotAlgebraic("storages do not cross from block to block in one way")
        return tuple(zip(owners[real].tolist(), change[real].tolist(), strict=True))

    def _changes(self, scale: Scale, more: int) -> Numbers:
        sizes = self.law.at(scale) + more * self.spliced.slopes
        if self.unit > 1:
            sizes = -(-sizes // self.unit) * self.unit
        changes: Numbers = sizes * self.spliced.line.signs
        return changes

    def _shape(self, more: int) -> _Shape:
        if more not in self._shapes:
            places = self.spliced.places(more)
            starts = self.spliced.starts(more)
            lengths = [run.length for run in self.spliced.runs]
            self._shapes[more] = _Shape(
                places=places,
                parts=self.spliced.line.parts[places],
                causes=self.spliced.line.causes[places],
                seconds=tuple(
                    (start + length, length) for start, length in zip(starts, lengths, strict=True)
                ),
            )
        return self._shapes[more]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    """A line of some depth: places in the shallow one, and where the second copies of runs are."""

    places: Numbers
    parts: Numbers
    causes: Numbers
    seconds: tuple[tuple[int, int], ...]
