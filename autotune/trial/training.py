"""The training of one trial: the first steps measured, one followed, the rest timed.

`Training` is everything that takes part; `train` takes it through the workload. What one optimizer
step is, stands in `trial/loop.py`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from autotune.core.outcome import Phase
from autotune.knobs.stages import DataPlan, StepPlan
from autotune.trial.anatomy import LiveStorages, reachable_bytes, watch_step
from autotune.trial.loop import Helpers, schedule, train_step
from autotune.trial.measure import FIRST_STEPS, MEASURED_STEPS
from autotune.trial.objective import Batch, Objective
from autotune.trial.progress import Progress
from autotune.trial.spec import TrialSpec

PROBE_STEPS = MEASURED_STEPS + 1
"""Steps that show the peak and its anatomy: those with instruments, and one that is followed."""


class LossDiverged(Exception):
    """The loss of a step is infinite or not a number."""

    def __init__(self, step: int, loss: float) -> None:
        super().__init__(f"loss {loss} at step {step}")
        self.step = step
        self.loss = loss


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """Everything that takes part in a training, apart from where and how long."""

    objective: Objective
    model: nn.Module
    optimizer: torch.optim.Optimizer
    helpers: Helpers
    data: DataPlan
    plan: StepPlan

    @property
    def held(self) -> int:
        """Bytes of every storage that lives between steps."""
        distiller = self.helpers.distiller
        teacher = (distiller.teacher,) if distiller else ()
        return reachable_bytes(self.model, self.optimizer, *teacher)


def train(training: Training, *, spec: TrialSpec, progress: Progress) -> None:
    """Train on the workload's sequences: the first steps measured, one followed, the rest timed.

    A configuration with another global batch makes more or fewer steps: it sees the same number of
    sequences.

    Raises:
        LossDiverged: If the loss of a step is not finite.
    """
    workload, data, plan = spec.facts.workload, training.data, training.plan
    whole = max(1, workload.steps * workload.global_batch // data.global_batch)
    steps = min(PROBE_STEPS, whole) if spec.probe else whole
    device = torch.device(spec.device.label)
    rates = schedule(training.optimizer, whole)
    batches = training.objective.train_batches(data, workload.seed)
    progress.tokens_per_step = data.global_batch * data.sequence_length
    for step in range(steps):
        phase = Phase.FIRST if step < FIRST_STEPS else Phase.STEADY
        progress.enter(phase)
        batch = next(batches)
        began = time.perf_counter()
        if step == MEASURED_STEPS:
            loss = followed_step(training, batch, device, progress)
        else:
            with progress.meter.instrument(phase, step, lambda: training.held):
                loss = one_step(training, batch, device)
        rates.step()
        if not math.isfinite(loss):
            raise LossDiverged(step, loss)
        for told in plan.after_step:
            told(training.model, (step + 1) / whole)
        progress.finish_step(steps, loss, time.perf_counter() - began)


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
        enter=enter,
    )


def followed_step(
    training: Training, batch: Batch, device: torch.device, progress: Progress
) -> float:
    """Do one step whose live storages are followed, for the anatomy."""
    storages = LiveStorages(device.type)
    if training.helpers.distiller is not None:
        teacher = training.helpers.distiller.teacher
        storages.adopt((*teacher.parameters(), *teacher.buffers()), "weights")
    with watch_step(storages, training.model, training.optimizer):
        loss = one_step(training, batch, device, storages.enter)
    progress.note_anatomy(storages.peak_parts)
    return loss
