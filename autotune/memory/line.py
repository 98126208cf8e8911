"""The events of a phase as arrays, so that traces can be compared and counted with as a whole."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from autotune.memory.trace import MOVED, Events, Trace

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Numbers = NDArray[np.int64]


class NotAlgebraic(Exception):
    """Traces do not follow from each other; the message says how."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """The events of one phase as arrays, in an order that does not depend on chance.

    Attributes:
        sizes: Bytes of the storage of each event.
        signs: 1 where it comes, -1 where it goes.
        parts: The part it belongs to.
        causes: What went on.
        owners: Place of the event by which the storage came.
        moves: Whether it only moves to another part.
    """

    sizes: Numbers
    signs: Numbers
    parts: Numbers
    causes: Numbers
    owners: Numbers
    moves: Numbers

    def __len__(self) -> int:
        return len(self.sizes)

    @cached_property
    def kinds(self) -> Numbers:
        """What tells events apart, sizes aside: one number for each."""
        return ((self.causes * 64 + self.parts) * 2 + self.moves) * 2 + (self.signs > 0)


def lines_of(trace: Trace, causes: dict[tuple[str, str], int]) -> dict[str, Line]:
    """Turn a trace into lines.

    Args:
        trace: Of any scale.
        causes: Numbers of causes, the same for all traces that are compared; new ones are added.
    """
    numbers = np.array([causes.setdefault(cause, len(causes)) for cause in trace.causes], np.int64)
    moved = np.array([operator == MOVED for _, operator in trace.causes], np.int64)
    return {
        phase: _line(events, numbers, moved[np.array(events.causes, np.int64)])
        for phase, events in trace.phases.items()
    }


def _line(events: Events, numbers: Numbers, moves: Numbers) -> Line:
    storages = np.array(events.storages, np.int64)
    change = np.array(events.bytes, np.int64)
    order = _settled(storages, change, moves)
    storages, change, moves = storages[order], change[order], moves[order]
    owners = np.arange(len(order))
    came: dict[int, int] = {}
    for place, storage in enumerate(storages.tolist()):
        owners[place] = came.setdefault(storage, place)
    return Line(
        sizes=np.abs(change),
        signs=np.sign(change),
        parts=np.array(events.parts, np.int64)[order],
        causes=numbers[np.array(events.causes, np.int64)[order]],
        owners=owners,
        moves=moves,
    )


def _settled(storages: Numbers, change: Numbers, moves: Numbers) -> Numbers:
    """Return the order of events in which what goes at once, goes in the order in which it came.

    Caches are emptied in the order of hashes, which differ from run to run.
    """
    goes = (change < 0) & (moves == 0)
    runs = np.cumsum(np.concatenate([[False], goes[1:] != goes[:-1]]))
    inside = np.where(goes, storages, np.arange(len(goes)))
    return np.lexsort((inside, runs))
