"""How a trial ended, and what was measured: plain data that crosses processes as JSON.

Every end is an outcome with data, also those that other tools raise for: out of memory, a signal,
a hang, a diverged loss. Two numbers summarise memory:

- `peak_bytes`, what the search minimises and the front shows: repeatable, so that a resumed run
  ends with the same front. Reserved bytes of the caching allocator on CUDA, tensor bytes on a CPU.
- `footprint_bytes`, what the budget is held against: the strictest peak that the device reports.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from typing import Any, ClassVar

_FINEST = 1000


class Phase(enum.StrEnum):
    """Parts of a trial whose peaks are told apart."""

    LOAD = "load"
    FIRST = "first"
    STEADY = "steady"
    EVALUATE = "evaluate"


class PeakKind(enum.StrEnum):
    """Who counted a peak.

    `ALLOCATED` is live tensor bytes, `RESERVED` the caching allocator's segments, `DEVICE` the
    process on the device by NVML, `RESIDENT` growth of the resident set over the trial's start.
    """

    ALLOCATED = "allocated"
    RESERVED = "reserved"
    DEVICE = "device"
    RESIDENT = "resident"


ANATOMY_PARTS = (
    "weights",
    "gradients",
    "optimizer",
    "activations",
    "logits",
    "inputs",
    "other",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """One peak: in which phase, on which rank, counted by whom, in bytes."""

    phase: Phase
    kind: PeakKind
    bytes: int
    rank: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What one trial measured.

    Attributes:
        peaks: Every peak, by phase, rank and kind.
        anatomy: Bytes at the moment of the peak in a steady step, by part (`ANATOMY_PARTS`).
        step_seconds: Median seconds of a steady optimizer step; 0 if none was reached.
        throughput: Tokens per second in steady steps; 0 if none was reached.
        steps: Optimizer steps done.
        parameters: Number of parameters after adaptation.
        trained_parameters: Those of them that were trained.
        counted: The one phase whose peaks count, where only the trained model's memory is
            searched for; empty if all do.
    """

    peaks: tuple[Peak, ...] = ()
    anatomy: Mapping[str, int] = field(default_factory=dict)
    step_seconds: float = 0.0
    throughput: float = 0.0
    steps: int = 0
    parameters: int = 0
    trained_parameters: int = 0
    counted: str = ""

    def peak(self, kind: PeakKind, phase: Phase | None = None) -> int:
        """Return the greatest peak of a kind over ranks, in one phase or in all that count."""
        wanted = phase or self.counted
        fitting = (p.bytes for p in self.peaks if p.kind == kind and wanted in ("", p.phase))
        return max(fitting, default=0)

    @property
    def peak_bytes(self) -> int:
        """What the search minimises: reserved bytes on CUDA, tensor bytes on a CPU."""
        return self.peak(PeakKind.RESERVED) or self.peak(PeakKind.ALLOCATED)

    @property
    def footprint_bytes(self) -> int:
        """What the budget is held against: the strictest of all peaks."""
        return max((p.bytes for p in self.peaks if self.counted in ("", p.phase)), default=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A metric's value with its standard error over the evaluation set.

    Attributes:
        value: As defined by the metric.
        stderr: Standard error, in the metric's unit; None if it cannot be told.
        n: Number of examples or tokens it is over.
    """

    value: float
    stderr: float | None = None
    n: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """Where a training paused, and how good it was there.

    Attributes:
        share: Of the whole training, as it was asked for.
        step: Optimizer steps done.
        steps: Of the whole training.
        seconds: That the trial had taken.
        scores: By metric, of the model as it was.
    """

    share: float
    step: int
    steps: int
    seconds: float = 0.0
    scores: Mapping[str, Score] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The share as a fraction: `"1/3"`."""
        return str(Fraction(self.share).limit_denominator(_FINEST))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ended:
    """What all outcomes carry; `rank` is the one that ended the trial, or spoke for all."""

    tag: ClassVar[str] = ""

    seconds: float = 0.0
    measurement: Measurement = field(default_factory=Measurement)
    rungs: tuple[Rung, ...] = ()
    rank: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the outcome as a JSON object whose `outcome` is its tag."""
        return {"outcome": self.tag, **asdict(self)}

    @property
    def summary(self) -> str:
        """Say in a few words how it ended."""
        return self.tag


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed(_Ended):
    """Trained and evaluated to the end."""

    tag: ClassVar[str] = "completed"

    scores: Mapping[str, Score] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Paused(_Ended):
    """Trained to a part of the whole and evaluated there; a checkpoint waits for going on.

    The last of `rungs` is where it is.
    """

    tag: ClassVar[str] = "paused"

    @property
    def rung(self) -> Rung:
        """Where it is."""
        return self.rungs[-1]

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.rung.step

    @property
    def summary(self) -> str:
        """Say where."""
        return f"paused at {self.rung.label}"


@dataclass(frozen=True, slots=True, kw_only=True)
class OutOfMemory(_Ended):
    """More memory was needed than allowed.

    Attributes:
        phase: Where.
        step: Optimizer step, from 0.
        needed_bytes: Live bytes plus the request that failed: a lower bound of the need.
        message: What the allocator said.
    """

    tag: ClassVar[str] = "out-of-memory"

    phase: Phase = Phase.LOAD
    step: int = 0
    needed_bytes: int = 0
    message: str = ""

    @property
    def summary(self) -> str:
        """Say where, and how much was needed."""
        return f"out of memory in {self.phase}, step {self.step}{_on(self.rank)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped(_Ended):
    """Ended on purpose before it was done."""

    tag: ClassVar[str] = "stopped"

    step: int = 0
    reason: str = ""

    @property
    def summary(self) -> str:
        """Say why."""
        return f"stopped at step {self.step}: {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Diverged(_Ended):
    """The loss became infinite or not a number."""

    tag: ClassVar[str] = "diverged"

    step: int = 0
    loss: str = "nan"

    @property
    def summary(self) -> str:
        """Say where."""
        return f"diverged at step {self.step}, loss {self.loss}{_on(self.rank)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Crashed(_Ended):
    """Ended by a signal, an exception or an exit of its own.

    Attributes:
        signal: Name of the signal, `"SIGSEGV"`, or None.
        exit_code: Exit code of the process, None if a signal ended it.
        error: The exception, as `Type: message`.
        traceback: The whole traceback.
    """

    tag: ClassVar[str] = "crashed"

    signal: str | None = None
    exit_code: int | None = None
    error: str = ""
    traceback: str = ""

    @property
    def summary(self) -> str:
        """Say by what."""
        cause = self.signal or self.error or f"exit code {self.exit_code}"
        return f"crashed: {cause}{_on(self.rank)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedOut(_Ended):
    """Ran into its wall-clock limit.

    Attributes:
        limit_seconds: The limit.
        phase: Where it was last heard of.
    """

    tag: ClassVar[str] = "timed-out"

    limit_seconds: float = 0.0
    phase: str = ""

    @property
    def summary(self) -> str:
        """Say after how long."""
        return f"timed out after {self.limit_seconds:.0f} s in {self.phase or 'start'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused(_Ended):
    """Never started: its rehearsal says that it cannot fit. It costs no trial.

    Attributes:
        needed_bytes: What it would most likely need.
        least_bytes: What it would need at least, with the certainty that refusing asks for.
    """

    tag: ClassVar[str] = "refused"

    needed_bytes: int = 0
    least_bytes: int = 0

    @property
    def summary(self) -> str:
        """Say why."""
        return "refused: its rehearsal is over the budget"


Outcome = Completed | Paused | OutOfMemory | Stopped | Diverged | Crashed | TimedOut | Refused

OUTCOMES: dict[str, type[Outcome]] = {
    kind.tag: kind
    for kind in (Completed, Paused, OutOfMemory, Stopped, Diverged, Crashed, TimedOut, Refused)
}


def _on(rank: int) -> str:
    return f", on rank {rank}" if rank else ""


def measurement_from_json(data: Mapping[str, Any]) -> Measurement:
    """Rebuild a measurement from the JSON object of `dataclasses.asdict`."""
    peaks = tuple(
        Peak(
            phase=Phase(peak["phase"]),
            kind=PeakKind(peak["kind"]),
            bytes=int(peak["bytes"]),
            rank=int(peak["rank"]),
        )
        for peak in data.get("peaks", ())
    )
    return Measurement(**{**data, "peaks": peaks})


def outcome_from_json(data: Mapping[str, Any]) -> Outcome:
    """Rebuild an outcome from the JSON object of its `to_json`.

    Raises:
        KeyError: If `outcome` is not one of `OUTCOMES`.
    """
    kind = OUTCOMES[data["outcome"]]
    fields: dict[str, Any] = {name: value for name, value in data.items() if name != "outcome"}
    fields["measurement"] = measurement_from_json(fields.get("measurement", {}))
    if "phase" in fields and kind is OutOfMemory:
        fields["phase"] = Phase(fields["phase"])
    if "scores" in fields:
        fields["scores"] = _scores_from_json(fields["scores"])
    fields["rungs"] = tuple(
        Rung(**{**rung, "scores": _scores_from_json(rung["scores"])})
        for rung in fields.get("rungs", ())
    )
    return kind(**fields)


def _scores_from_json(data: Mapping[str, Any]) -> dict[str, Score]:
    return {name: Score(**score) for name, score in data.items()}
