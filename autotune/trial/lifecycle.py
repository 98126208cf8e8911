"""One trial, from a configuration to its scores: the stages in order.

Read `run_trial` from top to bottom. Each stage folds the knobs that are off neutral over what
exists by then (`core/knob.py`); everything between the folds is the same for every configuration.
Whatever goes wrong is raised; `trial/worker.py` turns it into an outcome.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from autotune.core.knob import run_stage
from autotune.core.outcome import ANATOMY_PARTS, Completed, Measurement, PeakKind, Phase
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
from autotune.trial.measure import MEASURED_STEPS, Meter
from autotune.trial.objective import Objective, load_objective
from autotune.trial.spec import TrialSpec

PROBE_STEPS = MEASURED_STEPS + 1
"""Steps that show the peak and its anatomy: those with instruments, and one that is followed."""

Report = Callable[[str, dict[str, object]], None]
"""Takes the kind of an event and its data."""


class LossDiverged(Exception):
    """The loss of a step is infinite or not a number."""

    def __init__(self, step: int, loss: float) -> None:
        super().__init__(f"loss {loss} at step {step}")
        self.step = step
        self.loss = loss


@dataclass(slots=True)
class Progress:
    """How far a trial has come: what its outcome can say if it ends early.

    Attributes:
        phase: The phase it is in.
        step: Optimizer steps done.
        anatomy: Bytes by part at the peak of the step that was followed.
        step_seconds: Of the steps that carried no instrument.
        tokens_per_step: Tokens in a global batch.
        parameters: Number of parameters after adaptation.
        trained_parameters: Those of them that are trained.
    """

    phase: Phase = Phase.LOAD
    step: int = 0
    anatomy: dict[str, int] = field(default_factory=dict)
    step_seconds: list[float] = field(default_factory=list)
    tokens_per_step: int = 0
    parameters: int = 0
    trained_parameters: int = 0

    def measurement(self, meter: Meter) -> Measurement:
        """Return what has been measured so far."""
        seconds = statistics.median(self.step_seconds) if self.step_seconds else 0.0
        return Measurement(
            peaks=meter.peaks(),
            anatomy=dict(self.anatomy),
            step_seconds=seconds,
            throughput=self.tokens_per_step / seconds if seconds else 0.0,
            steps=self.step,
            parameters=self.parameters,
            trained_parameters=self.trained_parameters,
        )


def run_trial(spec: TrialSpec, meter: Meter, progress: Progress, report: Report) -> Completed:
    """Train and evaluate one configuration.

    Args:
        spec: What to do.
        meter: Measures the phases on the trial's device.
        progress: Kept up to date, so that a trial that ends early leaves what it knows.
        report: Told `"phase"` and `"step"` events as they happen.

    Returns:
        Scores and measurements.

    Raises:
        LossDiverged: If the loss of a step is not finite.
        Exception: Whatever the model, the data or the device raises.
    """
    workload, config = spec.facts.workload, spec.config
    objective = load_objective(workload.objective)(workload, Path(spec.cache))
    device = torch.device(spec.device.label)

    enter_phase(Phase.LOAD, progress, report)
    with meter.load():
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
    train(spec, objective, model, optimizer, data, step_plan, meter, progress, report)
    optimizer.zero_grad(set_to_none=True)
    del optimizer, trained
    if spec.probe:
        return Completed(measurement=progress.measurement(meter))

    enter_phase(Phase.EVALUATE, progress, report)
    plan = run_stage(EVALUATE, EvalPlan(batch=data.global_batch), BUILTIN, config)
    batches = objective.eval_batches(plan, data.sequence_length)
    for index, sample in enumerate((batches[:1], batches[:1])):
        with meter.instrument(Phase.EVALUATE, index, lambda: reachable_bytes(model)):
            objective.evaluate(model, sample, plan)
    scores = objective.evaluate(model, batches, plan)
    run_stage(DEPLOY, model, BUILTIN, config)
    return Completed(scores=scores, measurement=progress.measurement(meter))


def train(
    spec: TrialSpec,
    objective: Objective,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: DataPlan,
    plan: StepPlan,
    meter: Meter,
    progress: Progress,
    report: Report,
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
        phase = Phase.FIRST if step < 2 else Phase.STEADY
        if progress.phase is not phase:
            enter_phase(phase, progress, report)
        batch = next(batches)
        began = time.perf_counter()
        followed = step == min(MEASURED_STEPS, steps - 1) and step >= 2
        if followed:
            storages = LiveStorages(device.type)
            with watch_step(storages, model, optimizer):
                loss = train_step(
                    objective, model, optimizer, batch, plan,
                    device=device, enter=lambda name, at=storages: setattr(at, "phase", name),
                )  # fmt: skip
            progress.anatomy = whole_anatomy(storages, meter, phase)
        else:
            with meter.instrument(phase, step, lambda: reachable_bytes(model, optimizer)):
                loss = train_step(objective, model, optimizer, batch, plan, device=device)
        rates.step()
        if not math.isfinite(loss):
            raise LossDiverged(step, loss)
        progress.step = step + 1
        if step > MEASURED_STEPS:
            progress.step_seconds.append(time.perf_counter() - began)
        report("step", {"step": step + 1, "steps": steps, "loss": round(loss, 5)})


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


def whole_anatomy(storages: LiveStorages, meter: Meter, phase: Phase) -> dict[str, int]:
    """Return every part at the peak; what the allocator saw beyond the storages is `other`."""
    parts = {part: storages.peak_parts.get(part, 0) for part in ANATOMY_PARTS}
    seen = [p.bytes for p in meter.peaks() if (p.phase, p.kind) == (phase, PeakKind.ALLOCATED)]
    parts["other"] += max(0, max(seen, default=0) - sum(parts.values()))
    return parts


def enter_phase(phase: Phase, progress: Progress, report: Report) -> None:
    """Note and report that a phase begins."""
    progress.phase = phase
    report("phase", {"phase": str(phase)})
