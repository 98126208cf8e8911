"""Everything that a rehearsal saw, in order: what trace algebra is done on.

A `Trace` holds the events of every phase as columns of numbers, with the sizes that were asked for,
before any rounding. It is plain data that crosses processes as JSON, and needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

MOVED = " moved"
"""What is said of an event in place of an operator, if a storage only moves to another part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """The numbers of a training that change the sizes of a trace, but not its order.

    Attributes:
        layers: Equal blocks; of encoder and decoder each.
        micro_batch: Sequences that are in memory at once.
        sequence_length: Tokens per sequence that is trained on.
    """

    layers: int
    micro_batch: int
    sequence_length: int

    def to_json(self) -> dict[str, int]:
        """Return the fields as a JSON object."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Events:
    """Allocations, frees and moves of one phase, in order; they begin with what is live before.

    A move is two events: the storage leaves one part, and enters another.

    Attributes:
        storages: Number of the storage, the same in all of its events.
        bytes: Its size, negative where it goes.
        parts: The part it belongs to, as a place in `Trace.parts`.
        causes: What went on, as a place in `Trace.causes`.
    """

    storages: tuple[int, ...]
    bytes: tuple[int, ...]
    parts: tuple[int, ...]
    causes: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A rehearsal, event by event.

    Attributes:
        phases: Events by phase: `"first"`, `"steady"`, `"evaluate"`.
        parts: Names of parts.
        causes: Pairs of what went on (`"before"`, `"forward"`, `"backward"`) and the operator that
            had just run, or `MOVED`.
        unit: Sizes are rounded up to multiples of it, as an allocator does; in bytes.
        parameters: Number of parameters after adaptation.
        trained_parameters: Those of them that are trained.
        seconds: How long it took, in CPU seconds.
        note: What could not be followed, as a sentence, or empty.
    """

    phases: Mapping[str, Events]
    parts: tuple[str, ...]
    causes: tuple[tuple[str, str], ...]
    unit: int
    parameters: int
    trained_parameters: int
    seconds: float = 0.0
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Trace:
        """Rebuild the trace from the JSON object of `to_json`."""
        phases = {
            phase: Events(**{name: tuple(column) for name, column in events.items()})
            for phase, events in data["phases"].items()
        }
        causes = tuple((str(step), str(operator)) for step, operator in data["causes"])
        return cls(**{**data, "phases": phases, "parts": tuple(data["parts"]), "causes": causes})
