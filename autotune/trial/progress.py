"""How far a trial has come: what its outcome can say, also if it ends early."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from autotune.core.outcome import ANATOMY_PARTS, Measurement, PeakKind, Phase
from autotune.trial.measure import MEASURED_STEPS, Meter

Report = Callable[[str, dict[str, object]], None]
"""Takes the kind of an event and its data."""


@dataclass(slots=True, kw_only=True)
class Progress:
    """Measures, reports, and remembers.

    Attributes:
        meter: Measures the phases on the trial's device.
        report: Told `"phase"` and `"step"` events as they happen.
        phase: The phase the trial is in; None before the first.
        step: Optimizer steps done.
        anatomy: Bytes by part at the peak of the step that was followed.
        step_seconds: Seconds of each step that carried no instrument.
        tokens_per_step: Tokens in a global batch.
        parameters: Number of parameters after adaptation.
        trained_parameters: Those of them that are trained.
        counted: As in `Measurement`.
    """

    meter: Meter
    report: Report
    phase: Phase | None = None
    step: int = 0
    anatomy: dict[str, int] = field(default_factory=dict)
    step_seconds: list[float] = field(default_factory=list)
    tokens_per_step: int = 0
    parameters: int = 0
    trained_parameters: int = 0
    counted: str = ""

    def enter(self, phase: Phase) -> None:
        """Note and report that a phase begins, unless the trial is in it already."""
        if phase is not self.phase:
            self.phase = phase
            self.report("phase", {"phase": str(phase)})

    def finish_step(self, steps: int, loss: float, seconds: float) -> None:
        """Note and report a finished optimizer step.

        Args:
            steps: How many there will be in all.
            loss: Mean loss over the global batch.
            seconds: How long it took.
        """
        if self.step > MEASURED_STEPS:
            self.step_seconds.append(seconds)
        self.step += 1
        self.report("step", {"step": self.step, "steps": steps, "loss": round(loss, 5)})

    def note_anatomy(self, parts: Mapping[str, int]) -> None:
        """Keep the split at the peak; what the allocator saw beyond the storages is `other`."""
        self.anatomy = {part: parts.get(part, 0) for part in ANATOMY_PARTS}
        steady = (Phase.STEADY, PeakKind.ALLOCATED)
        seen = [p.bytes for p in self.meter.peaks() if (p.phase, p.kind) == steady]
        self.anatomy["other"] += max(0, max(seen, default=0) - sum(self.anatomy.values()))

    def measurement(self) -> Measurement:
        """Return what has been measured so far."""
        seconds = statistics.median(self.step_seconds) if self.step_seconds else 0.0
        return Measurement(
            peaks=self.meter.peaks(),
            anatomy=dict(self.anatomy),
            step_seconds=seconds,
            throughput=self.tokens_per_step / seconds if seconds else 0.0,
            steps=self.step,
            parameters=self.parameters,
            trained_parameters=self.trained_parameters,
            counted=self.counted,
        )
