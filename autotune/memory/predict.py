"""From a rehearsal to what a device will show, taken apart: an estimate.

A rehearsal counts tensors; the simulated allocator tells what is reserved for them; what neither
can see, the CUDA context or heap that a process keeps, is assumed, with its spread in the interval.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from autotune.core.config import Config
from autotune.core.knob import run_stage
from autotune.core.units import MIB
from autotune.knobs import BUILTIN
from autotune.knobs.accumulation import ACCUMULATION
from autotune.knobs.allocator import SETTINGS
from autotune.knobs.stages import DATA, STEP, DataPlan, StepPlan
from autotune.memory.allocator import Replay, Settings, replay
from autotune.memory.calibrate import Calibration, Interval, Prior
from autotune.memory.rehearsal import Rehearsal
from autotune.trial.spec import TrialSpec

COVERAGE = 0.9
"""Probability that the interval holds what would be measured."""

CONTEXT_BYTES = 512 * MIB
"""What a process is assumed to hold on a CUDA device before its first tensor: the context and the
kernels of torch's libraries. It depends on driver, device and libraries; measured ones lie between
0.3 and 0.7 GiB."""

CONTEXT_SPREAD = 128 * MIB
"""Standard deviation of that assumption."""


class Rehearser(Protocol):
    """Rehearses trials; see `memory/rehearsal_worker.py`."""

    def rehearse(self, spec: TrialSpec, *, record: bool = False) -> Rehearsal:
        """Return the memory of a trial, with its events if they are to be recorded.

        Raises:
            AutotuneError: If it cannot be rehearsed.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The memory that a configuration is predicted to need.

    Attributes:
        config: The configuration.
        rehearsal: What was counted.
        data: How its batches are made.
        accumulation: Micro-batches per optimizer step.
        allocator_bytes: What the caching allocator reserves beyond the tensors; 0 on a CPU.
        outside_bytes: What is expected outside of all tensors: the CUDA context, or heap.
        interval: Where a measurement would lie.
    """

    config: Config
    rehearsal: Rehearsal
    data: DataPlan
    accumulation: int
    allocator_bytes: int
    outside_bytes: int
    interval: Interval

    @property
    def parts(self) -> dict[str, int]:
        """Bytes by part; they sum up to the predicted peak.

        `first step` is what the greatest peak has beyond that of a steady step, which is taken
        apart.
        """
        parts = dict(self.rehearsal.anatomy)
        beyond = self.rehearsal.peak_bytes - sum(parts.values())
        if beyond > 0:
            parts["first step"] = beyond
        return parts | {"allocator": self.allocator_bytes, "outside": self.outside_bytes}

    @property
    def predicted_bytes(self) -> int:
        """The predicted peak."""
        return round(self.interval.middle)

    @property
    def micro_batch(self) -> int:
        """Sequences that are in memory at once."""
        return -(-self.data.global_batch // self.accumulation)


def estimated(spec: TrialSpec, rehearser: Rehearser, *, limited: bool = False) -> Estimate:
    """Predict the memory of a trial.

    Args:
        spec: The trial.
        rehearser: Rehearses it.
        limited: Whether the spec's limit, context included, is enforced: the allocator gives back
            what it caches before it fails.

    Raises:
        CannotRehearse: If it cannot be rehearsed.
    """
    cuda = spec.device.kind == "cuda"
    rehearsal = rehearser.rehearse(spec, record=cuda)
    config, workload = Config(spec.config, BUILTIN), spec.facts.workload
    allocator = 0
    if cuda:
        limit = spec.limit_bytes - CONTEXT_BYTES if limited else None
        ran = replayed(rehearsal, config, limit)
        allocator = max(0, ran.reserved_bytes - ran.allocated_bytes)
    prior = Prior(fixed_bytes=CONTEXT_BYTES, fixed_spread=CONTEXT_SPREAD) if cuda else Prior()
    data = DataPlan(sequence_length=workload.sequence_length, global_batch=workload.global_batch)
    counted = max(1, rehearsal.peak_bytes + allocator)
    return Estimate(
        config=config,
        rehearsal=rehearsal,
        data=run_stage(DATA, data, BUILTIN, config),
        accumulation=run_stage(STEP, StepPlan(), (ACCUMULATION,), config).accumulation,
        allocator_bytes=allocator,
        outside_bytes=round(prior.fixed_bytes),
        interval=Calibration(prior=prior).predict(counted, COVERAGE),
    )


def replayed(rehearsal: Rehearsal, config: Config, limit_bytes: int | None) -> Replay:
    """Return how a rehearsed step runs through the simulated allocator.

    Args:
        rehearsal: With its events.
        config: Says how the allocator is set up.
        limit_bytes: Most that may be reserved; without effect if the step does not run under it.
    """
    settings = Settings.parse(SETTINGS.get(str(config.get("allocator", "default")), ""))
    stream = list(stream_of(rehearsal.events))
    if limit_bytes is not None and limit_bytes > 0:
        ran = replay(stream, limit_bytes=limit_bytes, settings=settings)
        if ran.fits:
            return ran
    return replay(stream, settings=settings)


def stream_of(events: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Turn the events of a rehearsal, negative where a storage goes, into a stream to replay."""
    for storage, size in events:
        yield storage, max(0, size)
