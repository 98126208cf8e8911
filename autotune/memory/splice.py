"""What one more block adds to a trace, and traces of any depth put together from that.

The events of a training of n equal blocks are those of n - 1 with a few runs of events put in: one
in the forward pass, one in backward, some in the optimizer. Each repeats the run before it, which
is that of another block. So runs are found by comparing two traces of neighbouring depth, a third
one shows that there is nothing else to it, and how storages cross from run to run.

Nothing here knows about blocks, stacks or optimizers: encoder and decoder make two runs, blocks of
alternating kind are compared two at a time, and a trace that is not built like that is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from autotune.memory.line import Line, NotAlgebraic

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Numbers = NDArray[np.int64]

AHEAD = 64
"""Events that must agree after a run that was put in, for it to be taken for one."""

_FIXED = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run of events that one more block puts in.

    Attributes:
        place: Before which event of the shallow line.
        length: Its events; they repeat as many before that place.
    """

    place: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Spliced:
    """Lines of every depth, put together from the shallow one and runs that are put in.

    Attributes:
        line: The shallow line.
        runs: What each further block puts in.
        slopes: Bytes by which the size of each event grows with each further block: lists of norms
            grow, for one.
        crossing: For each event of the shallow line, then of each run, where its storage comes
            from; see `_crossings`. Empty if there are no runs.
    """

    line: Line
    runs: tuple[Run, ...] = ()
    slopes: Numbers
    crossing: tuple[_Crossing, ...] = ()

    def places(self, more: int) -> Numbers:
        """Return, for every event of a line with `more` further blocks, its like in the shallow."""
        pieces, at = [], 0
        for run in self.runs:
            pieces.append(np.arange(at, run.place))
            pieces += [np.arange(run.place - run.length, run.place)] * more
            at = run.place
        return np.concatenate([*pieces, np.arange(at, len(self.line))])

    def starts(self, more: int) -> list[int]:
        """Return where the first of the copies of each run stands, with `more` further blocks."""
        before = np.cumsum([0, *(run.length * more for run in self.runs)])
        return [run.place + int(put) for run, put in zip(self.runs, before, strict=False)]

    def owners(self, more: int) -> list[int]:
        """Return, for every event with `more` further blocks, where its storage came."""
        if more == 0:
            return [int(owner) for owner in self.line.owners]
        starts = self.starts(more)
        stands = _fixed_places(self, more)

        def found(crossing: _Crossing, copy: int) -> int:
            if crossing.run == _FIXED:
                return int(stands[crossing.offset])
            other, length = crossing.copy(copy, more), self.runs[crossing.run].length
            if 0 <= other < more:
                return starts[crossing.run] + other * length + crossing.offset
            beyond = other + 1 if other < 0 else other - more
            return int(stands[crossing.outside + beyond * length])

        made: list[int] = []
        at, after = 0, len(self.line)
        for run in self.runs:
            made += [found(crossing, 0) for crossing in self.crossing[at : run.place]]
            for copy in range(more):
                inside = self.crossing[after : after + run.length]
                made += [found(crossing, copy) for crossing in inside]
            at, after = run.place, after + run.length
        return made + [found(crossing, 0) for crossing in self.crossing[at : len(self.line)]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Crossing:
    """Where the storage of an event comes from.

    Attributes:
        run: The run; `_FIXED` for an event of the shallow line.
        offset: Place in the run, or in the shallow line.
        sign: 1 if later copies take from later copies; -1 if from earlier ones, as in backward.
        shift: By how many copies it is off.
        outside: Place in the shallow line, for the first copy that has no such copy.
    """

    run: int
    offset: int
    sign: int = 1
    shift: int = 0
    outside: int = _FIXED

    def copy(self, copy: int, count: int) -> int:
        """Return which of `count` copies it comes from, for one of the event's own."""
        return copy + self.shift if self.sign > 0 else count - 1 + self.shift - copy


def spliced(shallow: Line, deeper: Line, deepest: Line) -> Spliced:
    """Find what one more block adds.

    Args:
        shallow: The line of a model of at least three blocks, or of three of each kind.
        deeper: With one further block, or one of each kind.
        deepest: With two.

    Raises:
        NotAlgebraic: If the deepest line is not the shallow one with two further blocks.
    """
    runs, slopes = _find_runs(shallow, deeper)
    made = Spliced(line=shallow, runs=tuple(runs), slopes=slopes)
    places = made.places(2)
    if len(places) != len(deepest):
        raise NotAlgebraic("blocks are not alike")
    sizes = shallow.sizes[places] + 2 * slopes[places]
    if not np.array_equal(shallow.kinds[places], deepest.kinds):
        raise NotAlgebraic("blocks do not do the same")
    if not np.array_equal(sizes, deepest.sizes):
        raise NotAlgebraic("blocks do not have the same sizes")
    crossing = _crossings(made, deeper.owners, deepest.owners)
    return Spliced(line=shallow, runs=made.runs, slopes=slopes, crossing=crossing)


def alone(line: Line) -> Spliced:
    """Return a line that has one depth only."""
    return Spliced(line=line, slopes=np.zeros(len(line), np.int64))


def _find_runs(shallow: Line, deeper: Line) -> tuple[list[Run], Numbers]:
    """Go along both lines; where they differ, a run was put in, or a size has grown.

    Raises:
        NotAlgebraic: If neither explains it, or the lines are equal.
    """
    a, b = _exact(shallow), _exact(deeper)
    slopes = np.zeros(len(a), np.int64)
    runs: list[Run] = []
    here = there = 0
    while True:
        agreed = _agreement(a[here:], b[there:])
        here, there = here + agreed, there + agreed
        extra = (len(b) - there) - (len(a) - here)
        if here == len(a) and not extra:
            break
        length = _put_in((shallow, a, here), (deeper, b, there), extra)
        if length:
            # Not after the last block, whose like the copies are, but before it: then copies in
            # backward belong to copies in forward, and not to what stands beside them.
            earlier = _repeats(a, here - length, length)
            runs.append(Run(place=here - length if earlier else here, length=length))
            there += length
            continue
        if here == len(a) or shallow.kinds[here] != deeper.kinds[there]:
            raise NotAlgebraic("blocks do not do the same")
        slopes[here] = deeper.sizes[there] - shallow.sizes[here]
        here, there = here + 1, there + 1
    if not runs:
        raise NotAlgebraic("the model is not built with fewer blocks")
    return runs, slopes


def _put_in(
    shallow: tuple[Line, Numbers, int], deeper: tuple[Line, Numbers, int], most: int
) -> int:
    """Return the length of the run that was put in; 0 if none was.

    It repeats what is before it. Of several lengths, the one counts after which events agree for
    longest, in kind and in size: of a list that grows with depth, sizes alone may differ.

    Args:
        shallow: A line, the exact numbers of its events, and the place up to which both agree.
        deeper: Likewise.
        most: Events that are still too many.
    """
    (line, a, here), (other, b, there) = shallow, deeper
    if here == len(a):
        lengths = np.array([most])
    else:
        behind = other.kinds[there + 1 : there + max(0, most) + 1]
        lengths = np.nonzero(behind == line.kinds[here])[0] + 1
    best, longest = 0, 0
    for length in lengths.tolist():
        if length > here or _agreement(a[here - length : here], b[there:]) < length:
            continue
        after, ahead = slice(here, here + AHEAD), slice(there + length, there + length + AHEAD)
        agreed = _agreement(a[after], b[ahead])
        agreed += _agreement(line.kinds[after], other.kinds[ahead])
        if agreed >= longest and (agreed > longest or not best):
            best, longest = length, agreed
    return best


def _repeats(a: Numbers, place: int, length: int) -> bool:
    """Whether as many events before a place are those after it."""
    return place >= length and _agreement(a[place - length : place], a[place:]) == length


def _exact(line: Line) -> Numbers:
    """Return what tells events apart, sizes included."""
    mixed: Numbers = line.kinds * np.int64(0x1E3779B97F4A7C15) + line.sizes
    return mixed


def _agreement(a: Numbers, b: Numbers) -> int:
    """Return how many events agree, from the first one on."""
    least = min(len(a), len(b))
    differ = np.nonzero(a[:least] != b[:least])[0]
    return int(differ[0]) if len(differ) else least


def _fixed_places(made: Spliced, more: int) -> Numbers:
    """Return where the events of the shallow line stand, with `more` further blocks."""
    places = np.arange(len(made.line))
    for run in made.runs:
        places[run.place :] += run.length * more
    return places


def _crossings(made: Spliced, one: Numbers, two: Numbers) -> tuple[_Crossing, ...]:
    """Tell from lines with one and two further blocks where storages come from, at any depth.

    Args:
        made: Knows the runs.
        one: Owners of the line with one further block.
        two: Owners of the line with two.

    Raises:
        NotAlgebraic: If they do not show a pattern.
    """
    once, twice = _coordinates(made, 1), _coordinates(made, 2)
    found = [
        _lone_pattern(once[one[first]], twice[two[second]])
        for first, second in zip(_fixed_places(made, 1), _fixed_places(made, 2), strict=True)
    ]
    for run, start in zip(made.runs, made.starts(2), strict=True):
        for place in range(start, start + run.length):
            first, second = twice[two[place]], twice[two[place + run.length]]
            found.append(_pattern(first, second, made.runs))
    return tuple(found)


def _coordinates(made: Spliced, more: int) -> list[tuple[int, int, int]]:
    """Return the run, the copy and the offset of every event.

    For one of the shallow line, these are `_FIXED`, 0 and its place.
    """
    found: list[tuple[int, int, int]] = []
    at = 0
    for number, run in enumerate(made.runs):
        found += [(_FIXED, 0, place) for place in range(at, run.place)]
        found += [(number, copy, offset) for copy in range(more) for offset in range(run.length)]
        at = run.place
    return found + [(_FIXED, 0, place) for place in range(at, len(made.line))]


def _lone_pattern(one: tuple[int, int, int], two: tuple[int, int, int]) -> _Crossing:
    """Return from where an event that stands once takes, given it with one and with two copies.

    Raises:
        NotAlgebraic: If no pattern fits.
    """
    run, copy, offset = two
    if one[0] == run == _FIXED and one == two:
        return _Crossing(run=_FIXED, offset=offset)
    if run == _FIXED or one[0] not in (_FIXED, run):
        raise NotAlgebraic("storages do not cross from block to block in one way")
    if one[0] == run:  # from the first copy, or from the last
        return _Crossing(run=run, offset=offset, sign=1 if copy == 0 else -1)
    sign = -1 if copy == 0 else 1  # from the last but one, or from the second
    return _Crossing(run=run, offset=offset, sign=sign, shift=sign, outside=one[2])


def _pattern(
    first: tuple[int, int, int], second: tuple[int, int, int], runs: Sequence[Run]
) -> _Crossing:
    """Return from where copies take, given it of the first and the second of two.

    Raises:
        NotAlgebraic: If no pattern fits.
    """
    if first[0] == second[0] == _FIXED:
        return _far_pattern(first[2], second[2], runs)
    run, _, offset = first if first[0] != _FIXED else second
    outside = min(first, second)[2]  # of the one that is fixed, if one is
    for sign, shift in ((1, 0), (-1, 0), (1, -1), (-1, 1), (1, 1), (-1, -1)):
        crossing = _Crossing(run=run, offset=offset, sign=sign, shift=shift, outside=outside)
        seen = [
            (run, copy, offset) if copy in (0, 1) else (_FIXED, 0, outside)
            for copy in (crossing.copy(0, 2), crossing.copy(1, 2))
        ]
        if seen == [first, second]:
            return crossing
    raise NotAlgebraic("storages do not cross from block to block in one way")


def _far_pattern(first: int, second: int, runs: Sequence[Run]) -> _Crossing:
    """Return from where copies take, if the two of two take from outside of all copies.

    Raises:
        NotAlgebraic: If no pattern fits.
    """
    if first == second:
        return _Crossing(run=_FIXED, offset=first)  # one buffer that goes through all blocks
    low, high = min(first, second), max(first, second)
    for number, run in enumerate(runs):
        if high - low != run.length:
            continue
        if run.place - run.length <= high < run.place:  # the last two before the copies
            offset, shift, outside = high - run.place + run.length, -2, high
            sign = 1 if first == low else -1
        elif run.place <= low < run.place + run.length:  # the first two after them
            offset, shift, outside = low - run.place, 2, low
            sign = 1 if first == low else -1
        else:
            continue
        return _Crossing(run=number, offset=offset, sign=sign, shift=shift, outside=outside)
    raise NotAlgebraic("storages do not cross from block to block in one way")
