"""One trial, from a configuration to its scores: the stages in order.

Read `run_trial` from top to bottom. Each stage folds the knobs that are off neutral over what
exists by then (`core/knob.py`); everything between the folds is the same for every configuration.
Whatever goes wrong is raised; `trial/worker.py` turns it into an outcome.
"""

from __future__ import annotations

import math
import time
from pathlib import Path

import torch
from torch import nn

from autotune.core.knob import run_stage
from autotune.core.outcome import Completed, Phase
from autotune.knobs import BUILTIN
from autotune.knobs.optimizers import build_optimizer
from autotune.knobs.stages import (
    ADAPT,
    DATA,
    DEPLOY,
    EVALUATE,
    LOAD,
    OPTIMISE,
    PARALLELISE,
    STEP,
    DataPlan,
    EvalPlan,
    LoadPlan,
    OptimPlan,
    StepPlan,
)
from autotune.trial.anatomy import LiveStorages, reachable_bytes, watch_step
from autotune.trial.loop import schedule, train_step
from autotune.trial.measure import FIRST_STEPS, MEASURED_STEPS
from autotune.trial.objective import Objective, load_objective
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


def run_trial(spec: TrialSpec, progress: Progress) -> Completed:
    """Train and evaluate one configuration.

    Args:
        spec: What to do.
        progress: Measures, reports, and remembers how far the trial came.

    Returns:
        Scores and measurements.

    Raises:
        LossDiverged: If the loss of a step is not finite.
        Exception: Whatever the model, the data or the device raises.
    """
    workload, config = spec.facts.workload, spec.config
    objective = load_objective(workload.objective)(workload, Path(spec.cache))
    device = torch.device(spec.device.label)

    progress.enter(Phase.LOAD)
    with progress.meter.load():
        load = run_stage(LOAD, LoadPlan(), BUILTIN, config)
        model = objective.build(load, workload.seed)
        model = run_stage(ADAPT, model, BUILTIN, config)
        model = place(model, device)
        model = run_stage(PARALLELISE, model, BUILTIN, config)
    trained = [p for p in model.parameters() if p.requires_grad]
    progress.parameters = sum(p.numel() for p in model.parameters())
    progress.trained_parameters = sum(p.numel() for p in trained)
    optim = run_stage(OPTIMISE, OptimPlan(), BUILTIN, config)
    optimizer = build_optimizer(trained, optim, workload.learning_rate)

    data = DataPlan(sequence_length=workload.sequence_length, global_batch=workload.global_batch)
    data = run_stage(DATA, data, BUILTIN, config)
    step_plan = run_stage(STEP, StepPlan(), BUILTIN, config)
    train(objective, model, optimizer, spec=spec, data=data, plan=step_plan, progress=progress)
    optimizer.zero_grad(set_to_none=True)
    del optimizer, trained
    if spec.probe:
        return Completed(measurement=progress.measurement())

    progress.enter(Phase.EVALUATE)
    plan = run_stage(EVALUATE, EvalPlan(batch=data.global_batch), BUILTIN, config)
    batches = objective.eval_batches(plan, data.sequence_length)
    for index, sample in enumerate((batches[:1], batches[:1])):
        with progress.meter.instrument(Phase.EVALUATE, index, lambda: reachable_bytes(model)):
            objective.evaluate(model, sample, plan)
    scores = objective.evaluate(model, batches, plan)
    run_stage(DEPLOY, model, BUILTIN, config)
    return Completed(scores=scores, measurement=progress.measurement())


def train(
    objective: Objective,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    spec: TrialSpec,
    data: DataPlan,
    plan: StepPlan,
    progress: Progress,
) -> None:
    """Train for the workload's steps: the first ones measured, one followed, the rest timed.

    Raises:
        LossDiverged: If the loss of a step is not finite.
    """
    workload = spec.facts.workload
    steps = min(PROBE_STEPS, workload.steps) if spec.probe else workload.steps
    device = torch.device(spec.device.label)
    rates = schedule(optimizer, workload.steps)
    batches = objective.train_batches(data, workload.seed)
    progress.tokens_per_step = data.global_batch * data.sequence_length
    for step in range(steps):
        phase = Phase.FIRST if step < FIRST_STEPS else Phase.STEADY
        progress.enter(phase)
        batch = next(batches)
        began = time.perf_counter()
        if step == MEASURED_STEPS:
            storages = LiveStorages(device.type)
            with watch_step(storages, model, optimizer):
                loss = train_step(
                    objective, model, optimizer, batch, plan, device=device, enter=storages.enter
                )
            progress.note_anatomy(storages.peak_parts)
        else:
            with progress.meter.instrument(phase, step, lambda: reachable_bytes(model, optimizer)):
                loss = train_step(objective, model, optimizer, batch, plan, device=device)
        rates.step()
        if not math.isfinite(loss):
            raise LossDiverged(step, loss)
        progress.finish_step(steps, loss, time.perf_counter() - began)


def place(model: nn.Module, device: torch.device) -> nn.Module:
    """Move the model to its device; on the CPU, give its weights memory of their own.

    Weights that were read through a memory map take no memory until they are touched; training
    would then pay for them page by page, unseen by any count.
    """
    if device.type != "cpu":
        return model.to(device)
    moved: dict[int, torch.Tensor] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        key = tensor.untyped_storage()._cdata
        if key not in moved:
            moved[key] = tensor.data
            tensor.data = tensor.data.clone()
    return model
