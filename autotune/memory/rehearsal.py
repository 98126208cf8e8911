"""What a rehearsal finds out about a trial: plain data that crosses processes as JSON.

`memory/rehearse.py` makes it; this module needs no torch, so that drivers and screens can read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from autotune.core.errors import AutotuneError

ON_CPU_TENSORS = "AUTOTUNE_REHEARSE_ON_CPU_TENSORS"
"""Environment variable of a process that must not try fake CUDA tensors."""


class CannotRehearse(AutotuneError):
    """A trial that fake tensors cannot follow; one measured step tells its memory instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """The memory of a trial, known without running it.

    Attributes:
        peak_bytes: Most live tensor bytes, in the phases that count for the workload's purpose.
        phase: When: `"first"`, `"steady"` or `"evaluate"`.
        within: Where in it: `"forward"`, `"head"`, `"backward"` or `"optimizer"`.
        operator: The operator that had just run: `"aten.mm.default"`.
        anatomy: Bytes at the peak of a steady step, by part (`ANATOMY_PARTS`).
        peaks: Most live bytes by phase.
        parameters: Number of parameters after adaptation.
        trained_parameters: Those of them that are trained.
        events: Allocations and frees of a steady step, in order, each as the number of a storage
            and its bytes, negative where it goes; they begin with what is live before the step.
            Empty unless asked for.
        seconds: How long the rehearsal took, in CPU seconds.
        note: What could not be followed, as a sentence, or empty.
        derived: From which other rehearsals it was derived, as a sentence; empty if it was made.
        by_rank: Peak of each rank that was rehearsed, of a layout of several; the others are like
            one of these. All else is of the rank with the greatest.
    """

    peak_bytes: int
    phase: str
    within: str
    operator: str
    anatomy: Mapping[str, int]
    peaks: Mapping[str, int]
    parameters: int
    trained_parameters: int
    events: tuple[tuple[int, int], ...] = field(default=(), repr=False)
    seconds: float = 0.0
    note: str = ""
    derived: str = ""
    by_rank: Mapping[int, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a JSON object."""
        return {**asdict(self), "anatomy": dict(self.anatomy), "peaks": dict(self.peaks)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Rehearsal:
        """Rebuild the rehearsal from the JSON object of `to_json`."""
        events = tuple((int(storage), int(size)) for storage, size in data.get("events", ()))
        by_rank = {int(rank): int(peak) for rank, peak in data.get("by_rank", {}).items()}
        return cls(**{**data, "events": events, "by_rank": by_rank})
