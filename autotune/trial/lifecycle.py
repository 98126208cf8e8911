"""One trial, from a configuration to its scores: the stages in order.

Read `run_trial` from top to bottom. Each stage folds the knobs that are off neutral over what
exists by then (`core/knob.py`); everything between the folds is the same for every configuration.
Whatever goes wrong is raised; `trial/worker.py` turns it into an outcome. `memory/rehearse.py` runs
the same stages with stand-ins for weights and data.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from autotune.core.knob import run_stage
from autotune.core.outcome import Completed, Phase, Score
from autotune.core.workload import Workload
from autotune.knobs import BUILTIN
from autotune.knobs.distillation import Distiller
from autotune.knobs.optimizers import build_optimizer
from autotune.knobs.scaling import LossScaler
from autotune.knobs.stages import (
    ADAPT,
    COMPRESS,
    DATA,
    DEPLOY,
    EVALUATE,
    LOAD,
    OPTIMISE,
    PARALLELISE,
    SAVE,
    STEP,
    Adaptation,
    DataPlan,
    EvalPlan,
    LoadPlan,
    OptimPlan,
    StepPlan,
)
from autotune.trial.anatomy import reachable_bytes
from autotune.trial.keep import keep_model
from autotune.trial.loop import Helpers, contexts
from autotune.trial.objective import Batch, Objective, load_objective
from autotune.trial.progress import Progress
from autotune.trial.spec import TrialSpec
from autotune.trial.training import StandIns, Training, train

SAMPLE_BATCHES = 4
"""Batches that importance is measured on."""

SAMPLE_SEQUENCES = 8
"""Sequences in each of them, at most."""

INSTRUMENTED_EVALUATIONS = 2
"""Times that the first batch is evaluated for its memory: a CPU has two instruments, in turn."""


def run_trial(spec: TrialSpec, progress: Progress, stand_ins: StandIns | None = None) -> Completed:
    """Train and evaluate one configuration.

    Args:
        spec: What to do.
        progress: Measures, reports, and remembers how far the trial came.
        stand_ins: What takes the place of weights and data in a rehearsal, which does two steps,
            evaluates one batch, and scores nothing.

    Returns:
        Scores and measurements.

    Raises:
        LossDiverged: If the loss of a step is not finite.
        Exception: Whatever the model, the data or the device raises.
    """
    workload, config = spec.facts.workload, spec.config
    objective = load_objective(workload.objective)(workload, Path(spec.cache))
    if stand_ins is not None:
        objective = stand_ins.objective(objective)
    device = torch.device(spec.device.label)

    data = DataPlan(sequence_length=workload.sequence_length, global_batch=workload.global_batch)
    data = run_stage(DATA, data, BUILTIN, config)
    progress.enter(Phase.LOAD)
    with progress.meter.load():
        asked = LoadPlan(shapes_only=stand_ins is not None)
        load = run_stage(LOAD, asked, BUILTIN, config)
        model = objective.build(load, workload.seed)
        state = run_stage(ADAPT, adaptation(objective, model, data, workload), BUILTIN, config)
        model = place(state.model, device, mapped=load.memory_map)
        model = run_stage(PARALLELISE, model, BUILTIN, config)
    optim = run_stage(OPTIMISE, OptimPlan(), BUILTIN, config)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = build_optimizer(trained, optim, workload.learning_rate, model)
    progress.parameters = sum(p.numel() for p in model.parameters())
    progress.trained_parameters = sum(p.numel() for p in trained)

    step_plan = run_stage(STEP, StepPlan(), BUILTIN, config)
    helpers = Helpers(
        distiller=Distiller(model, state.distillation) if state.distillation else None,
        scaler=LossScaler() if step_plan.loss_scaling else None,
    )
    training = Training(
        objective=objective,
        model=model,
        optimizer=optimizer,
        helpers=helpers,
        data=data,
        plan=step_plan,
    )
    train(training, spec=spec, progress=progress, stand_ins=stand_ins)
    optimizer.zero_grad(set_to_none=True)
    if helpers.distiller is not None:
        helpers.distiller.leave()
    del optimizer, trained, training, helpers, state
    if spec.probe and workload.purpose != "inference":
        return Completed(measurement=progress.measurement())

    progress.enter(Phase.EVALUATE)
    model = run_stage(COMPRESS, model, BUILTIN, config)
    plan = run_stage(EVALUATE, evaluation(spec), BUILTIN, config)
    batches = objective.eval_batches(plan, workload.sequence_length)
    for index in range(1 if stand_ins is not None else INSTRUMENTED_EVALUATIONS):
        with progress.meter.instrument(Phase.EVALUATE, index, lambda: reachable_bytes(model)):
            evaluate(objective, model, batches[:1], plan, device)
    if spec.probe or stand_ins is not None:
        return Completed(measurement=progress.measurement())
    scores = evaluate(objective, model, batches, plan, device)
    hand_on(spec, objective, model)
    return Completed(scores=scores, measurement=progress.measurement())


def hand_on(spec: TrialSpec, objective: Objective, model: nn.Module) -> None:
    """Make the trained model one of its library's own layers, and keep it if that was asked for."""
    model = run_stage(DEPLOY, model, BUILTIN, spec.config)
    if spec.keep:
        keep_model(run_stage(SAVE, model, BUILTIN, spec.config), objective, Path(spec.keep))


def evaluation(spec: TrialSpec) -> EvalPlan:
    """Return how every configuration of a workload is evaluated, before knobs change it."""
    workload = spec.facts.workload
    streamed = workload.purpose == "inference" and "stream" in spec.facts.features
    return EvalPlan(batch=workload.global_batch, stream=streamed)


def evaluate(
    objective: Objective,
    model: nn.Module,
    batches: Sequence[Batch],
    plan: EvalPlan,
    device: torch.device,
) -> Mapping[str, Score]:
    """Score a model inside the contexts of the plan."""
    with contexts(plan.around_forward, device):
        return objective.evaluate(model, batches, plan)


def adaptation(
    objective: Objective, model: nn.Module, data: DataPlan, workload: Workload
) -> Adaptation:
    """Return what adapting a model starts from: itself, some data, and the teacher if one is named.

    Importance is measured on a few batches of an order of their own, so that the training sees its
    data in the same order whatever is pruned.
    """

    def losses(measured: nn.Module) -> Iterator[torch.Tensor]:
        few = replace(data, global_batch=min(SAMPLE_SEQUENCES, data.global_batch))
        batches = objective.train_batches(few, workload.seed + 1)
        for batch in itertools.islice(batches, SAMPLE_BATCHES):
            yield objective.loss(measured, batch, StepPlan())

    named = getattr(objective, "build_teacher", None) if workload.teacher else None
    return Adaptation(model=model, losses=losses, named_teacher=named)


def place(model: nn.Module, device: torch.device, *, mapped: bool = False) -> nn.Module:
    """Move the model to its device; on the CPU, give its weights memory of their own.

    Weights that were read through a memory map take no memory until they are touched; training
    would then pay for them page by page, unseen by any count. With `mapped`, weights that do not
    train stay in the map: their pages belong to the file, and the kernel may drop them.
    """
    if device.type != "cpu":
        return model.to(device)
    if not mapped:
        _renew_buffers(model)
    moved: dict[int, torch.Tensor] = {}
    for tensor in model.parameters():
        key = tensor.untyped_storage()._cdata
        if mapped and not tensor.requires_grad:
            tensor.in_file = True  # type: ignore[attr-defined]  # a mark of ours; see is_in_file
        elif key not in moved:
            moved[key] = tensor.data
            tensor.data = tensor.data.clone()
    return model


def _renew_buffers(model: nn.Module) -> None:
    """Put copies in the place of all buffers.

    A buffer that is a view, such as packed codes that were reshaped, refers to its base for as long
    as it lives, whatever data it is given: the old memory would stay.
    """
    copies: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                if id(buffer) not in copies:
                    copies[id(buffer)] = buffer.detach().clone()
                module._buffers[name] = copies[id(buffer)]
