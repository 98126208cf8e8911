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
from autotune.core.outcome import Completed, Paused, Phase, Rung, Score
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
from autotune.trial.held import reachable_bytes
from autotune.trial.keep import keep_model
from autotune.trial.layouts.team import Team
from autotune.trial.loop import Helpers, Training, contexts
from autotune.trial.objective import Batch, Objective, load_objective
from autotune.trial.progress import Progress
from autotune.trial.spec import TrialSpec
from autotune.trial.training import Reached, StandIns, train

Ended = Completed | Paused
"""How a trial ends of which nothing was raised."""

SAMPLE_BATCHES = 4
"""Batches that importance is measured on."""

SAMPLE_SEQUENCES = 8
"""Sequences in each of them, at most."""

INSTRUMENTED_EVALUATIONS = 2
"""Times that the first batch is evaluated for its memory: a CPU has two instruments, in turn."""


def run_trial(
    spec: TrialSpec,
    progress: Progress,
    stand_ins: StandIns | None = None,
    team: Team | None = None,
) -> Ended:
    """Train and evaluate one configuration.

    Args:
        spec: What to do.
        progress: Measures, reports, and remembers how far the trial came.
        stand_ins: What takes the place of weights and data in a rehearsal, which does two steps,
            evaluates one batch, and scores nothing.
        team: The ranks of which this process is one; None for a trial of one rank.

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
    team = team or Team()
    progress.enter(Phase.LOAD)
    with progress.meter.load():
        asked = LoadPlan(shapes_only=stand_ins is not None)
        load = run_stage(LOAD, asked, BUILTIN, config)
        model = objective.build(load, workload.seed)
        state = run_stage(ADAPT, adaptation(objective, model, data, workload), BUILTIN, config)
        model = team.place(state.model, lambda whole: place(whole, device, mapped=load.memory_map))
        model = run_stage(PARALLELISE, model, BUILTIN, config)
        model = team.arrange(model, data)
    optim = run_stage(OPTIMISE, OptimPlan(), BUILTIN, config)
    optimizer = team.optimizer(
        lambda trained, around: build_optimizer(
            trained, optim, workload.learning_rate, team.model, around
        )
    )
    progress.parameters, progress.trained_parameters = team.count()

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
        team=team,
    )
    reached = train(training, spec=spec, progress=progress, stand_ins=stand_ins)
    optimizer.zero_grad(set_to_none=True)
    team.rest()
    if helpers.distiller is not None:
        helpers.distiller.leave()
    del optimizer, training, helpers, state
    if spec.probe and workload.purpose != "inference":
        return Completed(measurement=progress.measurement())

    del model
    return assess(objective, team, reached, spec, progress, stand_ins)


def assess(
    objective: Objective,
    team: Team,
    reached: Reached,
    spec: TrialSpec,
    progress: Progress,
    stand_ins: StandIns | None = None,
) -> Ended:
    """Evaluate what was trained, its memory first, and hand it on."""
    progress.enter(Phase.EVALUATE)
    device = torch.device(spec.device.label)
    team.model = run_stage(COMPRESS, team.model, BUILTIN, spec.config)
    plan = run_stage(EVALUATE, evaluation(spec), BUILTIN, spec.config)
    batches = objective.eval_batches(plan, spec.facts.workload.sequence_length)
    for index in range(1 if stand_ins is not None else INSTRUMENTED_EVALUATIONS):
        with progress.meter.instrument(Phase.EVALUATE, index, lambda: reachable_bytes(team.model)):
            team.evaluate(lambda part: evaluate(objective, part, batches[:1], plan, device))
    if spec.probe or stand_ins is not None:
        return Completed(measurement=progress.measurement())
    scores = team.evaluate(lambda part: evaluate(objective, part, batches, plan, device))
    if reached.step == reached.steps:
        hand_on(spec, objective, team)
    return ended(reached, scores or {}, spec, progress)


def ended(
    reached: Reached, scores: Mapping[str, Score], spec: TrialSpec, progress: Progress
) -> Ended:
    """Return the outcome of a trial that was evaluated: at its end, or at a rung on the way."""
    if reached.step == reached.steps:
        return Completed(scores=scores, measurement=progress.measurement())
    rung = Rung(share=spec.until, step=reached.step, steps=reached.steps, scores=scores)
    return Paused(measurement=progress.measurement(), rungs=(rung,))


def hand_on(spec: TrialSpec, objective: Objective, team: Team) -> None:
    """Make the trained model one of its library's own layers, and keep it if that was asked for."""
    if team.size > 1 and not spec.keep:
        return
    model = team.whole()
    if model is None:
        return
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
    weights = list(model.parameters())
    # Asked for before any is let go: each old one goes as soon as its copy is there.
    keys = [weight.untyped_storage()._cdata for weight in weights]
    moved: set[int] = set()
    for tensor, key in zip(weights, keys, strict=True):
        if mapped and not tensor.requires_grad:
            tensor.in_file = True  # type: ignore[attr-defined]  # a mark of ours; see is_in_file
        elif key not in moved:
            moved.add(key)
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
