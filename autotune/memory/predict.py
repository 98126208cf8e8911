"""From a rehearsal to what a device will show, taken apart: a count, and an estimate.

`counted` is the number that everything else uses, the screen of a search and `autotune estimate`
alike. On a CPU it is the rehearsal's peak. On CUDA it is what the caching allocator reserves for
it: the recorded stream of allocations, after the workspaces of cuBLAS, runs through the simulated
allocator, under the limit less the context if there is a limit, since the allocator gives back what
it caches before it fails. What neither can see, the context or heap that a process keeps, is
measured or assumed, with its spread in the interval (`memory/outside.py`).

Loading the model is not rehearsed, because what it needs depends on its files: quantising weights
or measuring importance may need more than a step does. A search learns it from its trials
(`memory/calibrate.py`), a probe measures it, and `autotune estimate` leaves it out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from autotune.core.config import Config
from autotune.core.knob import run_stage
from autotune.core.outcome import Measurement, PeakKind, Phase
from autotune.knobs import BUILTIN
from autotune.knobs.accumulation import ACCUMULATION
from autotune.knobs.allocator import SETTINGS
from autotune.knobs.stages import DATA, LAYOUT, STEP, DataPlan, LayoutPlan, StepPlan
from autotune.memory.allocator import Replay, Settings, least_limit, replay
from autotune.memory.calibrate import Calibration, Interval
from autotune.memory.outside import MULTIPLYING_THREADS, Outside, outside_of
from autotune.memory.rehearsal import Rehearsal
from autotune.trial.spec import TrialSpec

COVERAGE = 0.9
"""Probability that the interval holds what would be measured."""

BEYOND: Mapping[str, str] = {"load": "loading", "evaluate": "evaluation"}
"""What the greatest peak has beyond that of a steady step, by its phase; else `first step`."""


class Rehearser(Protocol):
    """Rehearses trials; see `memory/rehearsal_worker.py`."""

    def rehearse(self, spec: TrialSpec, *, record: bool = False) -> Rehearsal:
        """Return the memory of a trial, with its events if they are to be recorded.

        Raises:
            AutotuneError: If it cannot be rehearsed.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """What a trial needs, as far as it can be counted.

    Attributes:
        rehearsal: The tensors.
        outside: What is beside them, and how well that is known.
        allocator_bytes: What the caching allocator reserves beyond tensors and workspaces; 0 on a
            CPU.
        fits: Whether the recorded step runs under the limit that was given; true without one, and
            on a CPU, where nothing is replayed.
    """

    rehearsal: Rehearsal
    outside: Outside
    allocator_bytes: int = 0
    fits: bool = True

    @property
    def bytes(self) -> int:
        """The count, in the currency of `Measurement.peak_bytes`: reserved on CUDA, else tensors.

        Where the step does not run under the limit, it is the least under which it would.
        """
        held = self.outside.workspace_bytes + self.allocator_bytes
        return max(1, self.rehearsal.peak_bytes + held)


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The memory that a configuration is predicted to need.

    Attributes:
        config: The configuration.
        rehearsal: What was counted, or what a probe measured.
        data: How its batches are made.
        accumulation: Micro-batches per optimizer step.
        workspace_bytes: What cuBLAS takes from the allocator; 0 on a CPU.
        allocator_bytes: What the caching allocator reserves beyond the tensors; 0 on a CPU.
        outside_bytes: What is expected outside of all tensors: the CUDA context, or heap.
        outside_source: Where that number is from, for a reader.
        interval: Where a measurement would lie.
        measured: Whether a probe measured all of it, so that nothing is predicted.
    """

    config: Config
    rehearsal: Rehearsal
    data: DataPlan
    accumulation: int
    workspace_bytes: int = 0
    allocator_bytes: int = 0
    outside_bytes: int = 0
    outside_source: str = ""
    interval: Interval
    measured: bool = False

    @property
    def parts(self) -> dict[str, int]:
        """Bytes by part; they sum up to the predicted peak.

        A steady step is taken apart; what the greatest peak has beyond it goes by its phase.
        """
        parts = dict(self.rehearsal.anatomy)
        beyond = self.rehearsal.peak_bytes - sum(parts.values())
        if beyond > 0:
            parts[BEYOND.get(self.rehearsal.phase, "first step")] = beyond
        return parts | {
            "workspace": self.workspace_bytes,
            "allocator": self.allocator_bytes,
            "outside": self.outside_bytes,
        }

    @property
    def predicted_bytes(self) -> int:
        """The predicted peak."""
        return round(self.interval.middle)

    @property
    def micro_batch(self) -> int:
        """Sequences that are in the memory of a device at once."""
        layout = run_stage(LAYOUT, LayoutPlan(), BUILTIN, self.config)
        return -(-self.data.global_batch // (self.accumulation * layout.replicas))


def counted(spec: TrialSpec, rehearser: Rehearser, *, limited: bool = False) -> Count:
    """Count what a trial needs.

    Args:
        spec: The trial.
        rehearser: Rehearses it.
        limited: Whether the spec's limit, context included, is enforced.

    Raises:
        CannotRehearse: If it cannot be rehearsed.
        AutotuneError: What the trial itself would raise.
    """
    cuda, outside = spec.device.kind == "cuda", outside_of(spec.device)
    rehearsal = rehearser.rehearse(spec, record=cuda)
    if not cuda:
        return Count(rehearsal=rehearsal, outside=outside)
    limit = max(1, spec.limit_bytes - outside.fixed_bytes) if limited else None
    ran = replayed(rehearsal, Config(spec.config, BUILTIN), outside.workspace_bytes, limit)
    allocator = max(0, ran.reserved_bytes - ran.allocated_bytes)
    return Count(rehearsal=rehearsal, outside=outside, allocator_bytes=allocator, fits=ran.fits)


def estimated(spec: TrialSpec, rehearser: Rehearser, *, limited: bool = False) -> Estimate:
    """Predict the memory of a trial before anything was measured.

    Args:
        spec: The trial.
        rehearser: Rehearses it.
        limited: Whether the spec's limit, context included, is enforced.

    Raises:
        CannotRehearse: If it cannot be rehearsed.
    """
    count = counted(spec, rehearser, limited=limited)
    data, accumulation = _batches(spec)
    return Estimate(
        config=Config(spec.config, BUILTIN),
        rehearsal=count.rehearsal,
        data=data,
        accumulation=accumulation,
        workspace_bytes=count.outside.workspace_bytes,
        allocator_bytes=count.allocator_bytes,
        outside_bytes=count.outside.fixed_bytes,
        outside_source=count.outside.source,
        interval=Calibration(prior=count.outside.prior).predict(count.bytes, COVERAGE),
    )


def measured(spec: TrialSpec, measurement: Measurement) -> Estimate:
    """Return what a probe measured as an estimate that leaves nothing open.

    Args:
        spec: The trial that was probed.
        measurement: What the probe measured.
    """
    data, accumulation = _batches(spec)
    footprint, tensors = measurement.footprint_bytes, measurement.peak(PeakKind.ALLOCATED)
    by_phase = {phase: measurement.peak(PeakKind.ALLOCATED, phase) for phase in Phase}
    return Estimate(
        config=Config(spec.config, BUILTIN),
        rehearsal=Rehearsal(
            peak_bytes=tensors,
            phase=str(max(by_phase, key=lambda phase: by_phase[phase])),
            within="",
            operator="",
            anatomy=measurement.anatomy,
            peaks={str(phase): size for phase, size in by_phase.items()},
            parameters=measurement.parameters,
            trained_parameters=measurement.trained_parameters,
        ),
        data=data,
        accumulation=accumulation,
        allocator_bytes=measurement.peak_bytes - tensors,
        outside_bytes=footprint - measurement.peak_bytes,
        outside_source="measured: what the device showed beyond that",
        interval=Interval(low=footprint, middle=footprint, high=footprint),
        measured=True,
    )


def replayed(
    rehearsal: Rehearsal, config: Config, workspace_bytes: int, limit_bytes: int | None
) -> Replay:
    """Return how a rehearsed step runs through the simulated allocator.

    Args:
        rehearsal: With its events.
        config: Says how the allocator is set up.
        workspace_bytes: What cuBLAS takes before the step.
        limit_bytes: Most that may be reserved; None for no limit.

    Returns:
        How it ran under the limit, or if it does not, under the least limit under which it does.
    """
    settings = Settings.parse(SETTINGS.get(str(config.get("allocator", "default")), ""))
    stream = list(stream_of(rehearsal.events, workspace_bytes))
    ran = replay(stream, limit_bytes=limit_bytes, settings=settings)
    if limit_bytes is None or ran.fits:
        return ran
    return least_limit(stream, above=limit_bytes, settings=settings)


def stream_of(
    events: Iterable[tuple[int, int]], workspace_bytes: int = 0
) -> Iterator[tuple[int, int]]:
    """Turn the events of a rehearsal, negative where a storage goes, into a stream to replay.

    Args:
        events: Of a rehearsal.
        workspace_bytes: Workspaces of cuBLAS, which are there before and stay.
    """
    each = workspace_bytes // MULTIPLYING_THREADS
    yield from ((-number, each) for number in range(1, MULTIPLYING_THREADS + 1) if each)
    for storage, size in events:
        if size:  # else it stays where it is, and only counts as another part
            yield storage, max(0, size)


def _batches(spec: TrialSpec) -> tuple[DataPlan, int]:
    """Return how batches are made, and in how many pieces they are trained on."""
    config, workload = Config(spec.config, BUILTIN), spec.facts.workload
    data = DataPlan(sequence_length=workload.sequence_length, global_batch=workload.global_batch)
    step = run_stage(STEP, StepPlan(), (ACCUMULATION,), config)
    return run_stage(DATA, data, BUILTIN, config), step.accumulation
