"""What goes into a trial's process and what comes out of it, as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from autotune.core.context import Device
from autotune.core.domains import Value
from autotune.core.workload import WorkloadFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The ranks of a trial that one of several nodes has.

    Attributes:
        first: The first of them.
        count: How many there are, one after another.
        host: Address of the node that the others know.
        address: Where ranks meet; empty for the part that opens the meeting, and tells where.
    """

    first: int
    count: int
    host: str
    address: str = ""


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
        until: Share of the training after which it is evaluated and pauses; 1 to train to the end.
        checkpoint: File that a pause leaves, and that the trial goes on from if it is there.
        part: Which ranks are here, if others are on other nodes; None if all are here.
        snapshot: File for torch's own snapshot of one step, of the first rank on CUDA; empty for
            none.
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
    until: float = 1.0
    checkpoint: str = ""
    snapshot: str = ""
    part: Part | None = None

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
                "part": Part(**data["part"]) if data.get("part") else None,
            }
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that a trial reported.

    Attributes:
        trial: Number of the trial.
        kind: `"phase"` (data: phase), `"step"` (step, steps, loss), `"outcome"` (an outcome), and
            before it starts `"screen"` (note: why it was not rehearsed, and what was done instead).
            On a cluster also `"node"` (node, device: where it runs) and `"repeated"` (note: which
            node was lost).
        data: Its JSON object.
        time: Unix time, or the runner's simulated time.
    """

    trial: int
    kind: str
    data: Mapping[str, Any] = field(default_factory=dict)
    time: float = 0.0
