"""The training of one trial: the first steps measured, one followed, the rest timed.

`Training` is everything that takes part; `train` takes it through the workload. What one optimizer
step is, stands in `trial/loop.py`. With `StandIns` in place of weights and data, the same code is
a rehearsal: two steps, of which nothing is kept but who held memory when.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from autotune.core.outcome import Phase
from autotune.core.parts import pause_after
from autotune.knobs.stages import StepPlan
from autotune.trial.anatomy import LiveStorages, label_step
from autotune.trial.layouts.team import Team
from autotune.trial.loop import Training, schedule, train_step
from autotune.trial.measure import FIRST_STEPS, MEASURED_STEPS
from autotune.trial.objective import Batch, Objective
from autotune.trial.pausing import Pause
from autotune.trial.progress import Progress
from autotune.trial.spec import TrialSpec

PROBE_STEPS = MEASURED_STEPS + 1
"""Steps that show the peak and its anatomy: those with instruments, and one that is followed."""

REHEARSED_STEPS = 2
"""A first step, in which optimizer states come to be, and a steady one; others are like it."""


class StandIns(Protocol):
    """What takes the place of weights and data in a rehearsal: tensors without values."""

    storages: LiveStorages
    """Follows every storage, from the first one on."""

    def objective(self, objective: Objective) -> Objective:
        """Return the same objective, but for its models and batches, which are stand-ins."""


class LossDiverged(Exception):
    """The loss of a step is infinite or not a number."""

    def __init__(self, step: int, loss: float) -> None:
        super().__init__(f"loss {loss} at step {step}")
        self.step = step
        self.loss = loss


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached:
    """How many optimizer steps were done, and how many the whole training has."""

    step: int
    steps: int


def train(
    training: Training,
    *,
    spec: TrialSpec,
    progress: Progress,
    stand_ins: StandIns | None = None,
) -> Reached:
    """Train on the workload's sequences: the first steps measured, one followed, the rest timed.

    A configuration with another global batch makes more or fewer steps: it sees the same number of
    sequences.

    Args:
        training: Everything that takes part.
        spec: How long, and where.
        progress: Measures, reports, and remembers.
        stand_ins: What takes the place of the data in a rehearsal.

    Returns:
        How far it came; not to its end if it paused, or if it was only to be probed.

    Raises:
        LossDiverged: If the loss of a step is not finite.
    """
    workload, data, plan = spec.facts.workload, training.data, training.plan
    whole = max(1, workload.steps * workload.global_batch // data.global_batch)
    steps = min(PROBE_STEPS, whole) if spec.probe else pause_after(spec.until, whole)
    first = FIRST_STEPS
    batches = training.objective.train_batches(data, workload.seed)
    if stand_ins is not None:
        steps, first = min(REHEARSED_STEPS, whole), REHEARSED_STEPS - 1
        training = replace(training, plan=_few_micro_batches(plan, training.team))
        batches = _measured(batches)
    device = torch.device(spec.device.label)
    rates = schedule(training.optimizer, whole)
    pause = Pause(training, rates, spec)
    progress.step = pause.go_on(batches)
    progress.tokens_per_step = data.global_batch * data.sequence_length
    for step in range(progress.step, steps):
        phase = Phase.FIRST if step < first else Phase.STEADY
        progress.enter(phase)
        batch = next(batches)
        if "input_ids" in batch:  # batches may be narrower than the longest sequence
            progress.tokens_per_step = batch["input_ids"].numel()
        began = time.perf_counter()
        if stand_ins is not None:
            few = _first_rows(batch, plan, training.team)
            with progress.meter.instrument(phase, step, lambda: training.held):
                loss = labelled_step(training, few, device, stand_ins.storages)
        elif step == MEASURED_STEPS:
            loss = followed_step(training, batch, device, progress)
        else:
            with progress.meter.instrument(phase, step, lambda: training.held):
                loss = one_step(training, batch, device)
        rates.step()
        if not math.isfinite(loss):
            raise LossDiverged(step, loss)
        for told in plan.after_step:
            told(training.model, (step + 1) / whole)
        shown = whole if spec.until < 1.0 else steps
        progress.finish_step(shown, loss, time.perf_counter() - began)
    pause.keep(steps, whole)
    return Reached(step=steps, steps=whole)


def one_step(
    training: Training, batch: Batch, device: torch.device, enter: Callable[[str], object] = str
) -> float:
    """Do one optimizer step of a training and return its loss; see `loop.train_step`."""
    return train_step(
        training.objective,
        training.model,
        training.optimizer,
        batch,
        training.plan,
        device=device,
        helpers=training.helpers,
        team=training.team,
        enter=enter,
    )


def followed_step(
    training: Training, batch: Batch, device: torch.device, progress: Progress
) -> float:
    """Do one step whose live storages are followed, for the anatomy."""
    storages = LiveStorages(device.type)
    with _labels(training, storages), storages:
        loss = one_step(training, batch, device, storages.enter)
    progress.note_anatomy(storages.peak_parts)
    return loss


def labelled_step(
    training: Training, batch: Batch, device: torch.device, storages: LiveStorages
) -> float:
    """Do one step while `storages`, which is entered already, is told what its storages are."""
    with _labels(training, storages):
        return one_step(training, batch, device, storages.enter)


@contextmanager
def _labels(training: Training, storages: LiveStorages) -> Iterator[None]:
    if training.helpers.distiller is not None:
        teacher = training.helpers.distiller.teacher
        storages.adopt((*teacher.parameters(), *teacher.buffers()), "weights")
    with label_step(storages, training.model, training.optimizer):
        yield


def _measured(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Yield the batch of the first step and that of the first steady one, which are measured.

    Batches are alike in shape, but a model may find that one of them is not padded.
    """
    yield next(batches)
    yield from itertools.islice(batches, FIRST_STEPS - 1, None)


def _few_micro_batches(plan: StepPlan, team: Team) -> StepPlan:
    return replace(plan, accumulation=min(plan.accumulation, team.different_micro_batches))


def _first_rows(batch: Batch, plan: StepPlan, team: Team) -> Batch:
    """Return what the first micro-batches consist of; see `loop.train_step` for how it is split."""
    pieces = _few_micro_batches(plan, team).accumulation
    return {
        name: tensor[: pieces * -(-len(tensor) // plan.accumulation)]
        for name, tensor in batch.items()
    }
