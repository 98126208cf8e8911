"""What goes into a trial's process and what comes out of it, as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from autotune.core.context import Device
from autotune.core.domains import Value
from autotune.core.workload import WorkloadFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialSpec:
    """Everything that one trial depends on.

    Attributes:
        number: Number of the trial in its run.
        config: Values that are off neutral, by knob name.
        facts: Workload, model and data.
        device: Where it runs.
        threads: CPU threads.
        limit_bytes: Most memory; enforced while it runs.
        limit_seconds: Most wall-clock seconds; enforced from outside.
        cache: Folder of prepared data.
        log: File that gets standard output and error.
        probe: Train only the steps that are measured and skip the evaluation: memory only.
        keep: Folder for the trained model as plain transformers loads it; empty to keep nothing.
    """

    number: int
    config: Mapping[str, Value]
    facts: WorkloadFacts
    device: Device
    threads: int
    limit_bytes: int
    limit_seconds: float
    cache: str
    log: str
    probe: bool = False
    keep: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a JSON object."""
        return {**asdict(self), "config": dict(self.config)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TrialSpec:
        """Rebuild the spec from the JSON object of `to_json`."""
        device = dict(data["device"])
        capability = device.get("capability")
        device["capability"] = tuple(capability) if capability else None
        return cls(
            **{
                **data,
                "facts": WorkloadFacts.from_json(data["facts"]),
                "device": Device(**device),
            }
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that a trial reported.

    Attributes:
        trial: Number of the trial.
        kind: `"phase"` (data: phase), `"step"` (step, steps, loss), `"outcome"` (an outcome), and
            before it starts `"screen"` (note: why it was not rehearsed, and what was done instead).
        data: Its JSON object.
        time: Unix time, or the runner's simulated time.
    """

    trial: int
    kind: str
    data: Mapping[str, Any] = field(default_factory=dict)
    time: float = 0.0
