"""The loop: propose, run, tell, record. The first file to read.

`search` keeps the runner's slots full with configurations; when a trial ends, however it ends, the
driver writes the outcome to the study database, tells the proposer and keeps the front
(`autotune/driver.py`). `tune` starts a run, `resume` continues one; both end with a `Run`, what
the database knows of it.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from autotune.core.budget import Budget
from autotune.core.errors import UsageError
from autotune.core.observer import Observer
from autotune.driver import Search
from autotune.fit import check_that_something_fits
from autotune.memory.rehearsal_worker import RehearsalWorker
from autotune.plan import (
    DEFAULT_OBJECTIVE,
    DEFAULT_TRIAL_SECONDS,
    DEFAULT_TRIALS,
    UNTIL_STABLE,
    Plan,
    Settings,
    local_runner,
    make_plan,
    plan_again,
)
from autotune.runners.base import Runner
from autotune.runners.local import LocalRunner
from autotune.runners.probe import LocalProber
from autotune.search.proposers import DEFAULT_SAMPLER, Task, make_proposer
from autotune.search.screen import Screen
from autotune.search.study import StudyMirror
from autotune.storage.run import Run, new_run_folder
from autotune.storage.store import Store

HEARTBEAT_SECONDS = 15.0
"""The database hears of the driver at least this often, also while one long trial runs."""


def search(state: Search) -> str:
    """Run the loop to its end.

    Args:
        state: Who takes part, and what is known so far.

    Returns:
        How the run ended: `"done"`, or `"interrupted"` by Ctrl-C.

    Raises:
        NothingFits: If not even the smallest configuration fits the budget.
    """
    limit, runner = state.plan.spec.time_limit, state.runner
    began = runner.now() - state.seconds_before
    more = True
    try:
        while more or state.running:
            more = more and (limit is None or runner.now() - began < limit)
            while more and len(state.running) < runner.slots and not state.undecided:
                more = state.submit_next()
            if (event := runner.next(HEARTBEAT_SECONDS)) is None:
                state.store.heartbeat(state.name)
            else:
                state.hear(event)
                check_that_something_fits(state)
    except KeyboardInterrupt:
        state.interrupt()
        return "interrupted"
    return "done"


def tune(
    *,
    budget: str | Budget,
    objective: str = DEFAULT_OBJECTIVE,
    model: str | None = None,
    data: str | None = None,
    teacher: str | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    trust_remote_code: bool = False,
    space: str = "default",
    overrides: Mapping[str, str] | None = None,
    trials: int = DEFAULT_TRIALS,
    time: float | None = None,
    steps: int = 0,
    seed: int = 0,
    sampler: str = DEFAULT_SAMPLER,
    jobs: int | None = None,
    device: str | None = None,
    trial_seconds: float = DEFAULT_TRIAL_SECONDS,
    until: str = "",
    name: str | None = None,
    results: str | Path = "results",
    storage: str | None = None,
    runner: Runner | None = None,
    observers: Sequence[Observer] = (),
) -> Run:
    """Search the configurations that fit a memory budget by training them for real.

    Args:
        budget: Memory for one trial, such as `"16GB"`; `"auto"` for what the device has free.
        objective: What to train for; `autotune spaces objectives` lists them.
        model: A folder or hub name; None for the objective's own.
        data: A file or folder; None for the objective's own.
        teacher: A folder or hub name for distillation to learn from; None for the model itself.
        text_column: Column of the text in `data`.
        label_column: Column of the label in `data`.
        trust_remote_code: Whether code that comes with the model may run.
        space: Name or file of the search space.
        overrides: Narrower values by knob, as after `--set`: `{"precision": "bf16"}`.
        trials: Most trials.
        time: Most seconds; trials that run by then are finished.
        steps: Optimizer steps of a trial; 0 for what the space or the objective says.
        seed: Of the search and of every training.
        sampler: `"frontier"`, `"tpe"`, `"nsga2"`, `"gp"`, `"random"` or `"qmc"`.
        jobs: Trials side by side; None for one per accelerator, or as memory and cores allow.
        device: `"cpu"`, `"cuda"` or `"cuda:1"`; None for the first accelerator, or else the CPU.
        trial_seconds: Most seconds for one trial.
        until: `"stable"` to end when a further trial is expected to add next to nothing.
        name: Of the run and its folder; None for a new one.
        results: Where runs are kept.
        storage: SQLAlchemy URL of the study database; None for SQLite in the run's folder.
        runner: Runs the trials; None for this machine.
        observers: Told what happens.

    Returns:
        The finished or interrupted run.

    Raises:
        AutotuneError: Whatever is wrong with what was asked for, before anything is trained.
        NothingFits: If not even the smallest configuration fits the budget.
    """
    settings = Settings(
        budget=budget,
        objective=objective,
        model=model,
        data=data,
        teacher=teacher,
        text_column=text_column,
        label_column=label_column,
        trust_remote_code=trust_remote_code,
        space=space,
        overrides=overrides or {},
        trials=trials,
        time=time,
        steps=steps,
        seed=seed,
        sampler=sampler,
        jobs=jobs,
        device=device,
        trial_seconds=trial_seconds,
        until=until,
    )
    return start(
        settings, name=name, results=results, storage=storage, runner=runner, observers=observers
    )


def start(
    settings: Settings,
    *,
    name: str | None = None,
    results: str | Path = "results",
    storage: str | None = None,
    runner: Runner | None = None,
    observers: Sequence[Observer] = (),
) -> Run:
    """Start a run from settings that stand together; see `tune` for what each parameter means."""
    used = runner or local_runner(settings)
    try:
        folder = new_run_folder(results, name)
        try:
            plan = make_plan(settings, used, name=folder.name, cache=folder / "cache")
        except UsageError:
            shutil.rmtree(folder)  # nothing in it but what was prepared for a run that is not
            raise
        database = storage or _database(folder)
        with Store.open(database, clock=used.now) as store:
            store.start_run(plan.spec)
            _conduct(plan, store, database, used, folder, observers, until=settings.until)
        return Run.open(folder.name, results=results, storage=storage)
    finally:
        used.close()


def resume(
    run: str | None = None,
    *,
    trials: int | None = None,
    extra: int = 0,
    time: float | None = None,
    results: str | Path = "results",
    storage: str | None = None,
    runner: Runner | None = None,
    observers: Sequence[Observer] = (),
) -> Run:
    """Continue a run: trials that were interrupted are repeated, settings come from the run.

    Args:
        run: Name of the run; None for the latest.
        trials: Most trials in all; None for as many as before.
        extra: Trials on top of that.
        time: Most seconds in all; None for as before, or for no limit if trials are given.
        results: Where runs are kept.
        storage: SQLAlchemy URL of the study database, if it is not in the run's folder.
        runner: Runs the trials; None for this machine.
        observers: Told what happens.

    Returns:
        The finished or interrupted run.

    Raises:
        AutotuneError: If there is no such run, or what it needs is not there any more.
    """
    found = Run.open(run, results=results, storage=storage)
    most = (trials if trials is not None else found.spec.trials) + extra
    asked_for_more = trials is not None or extra > 0
    limit = found.spec.time_limit if time is None and not asked_for_more else time
    plan = plan_again(replace(found.spec, trials=most, time_limit=limit))
    settings = Settings(budget=plan.budget, device=plan.context.device.label, jobs=plan.spec.jobs)
    used = runner or local_runner(settings)
    try:
        database = storage or _database(found.folder)
        with Store.open(database, create=False, clock=used.now) as store:
            store.resume_run(plan.spec)
            _conduct(plan, store, database, used, found.folder, observers)
        return Run.open(found.name, results=results, storage=storage)
    finally:
        used.close()


def _conduct(
    plan: Plan,
    store: Store,
    database: str,
    runner: Runner,
    folder: Path,
    observers: Sequence[Observer],
    *,
    until: str = "",
) -> None:
    """Search, and leave the run in a state that says how it ended."""
    spec = plan.spec
    task = Task(
        space=plan.space,
        context=plan.context,
        metric=spec.facts.metric,
        limit_bytes=plan.budget.limit_bytes,
        seed=spec.seed,
        trials=spec.trials,
    )
    mirror = StudyMirror(database, spec.name, plan.space)
    screen = Screen(
        RehearsalWorker(),
        plan.budget.limit_bytes,
        spec.facts.model.parameters,
        LocalProber() if isinstance(runner, LocalRunner) else None,
    )
    state = Search(
        plan=plan,
        store=store,
        mirror=mirror,
        proposer=make_proposer(spec.sampler, task),
        runner=runner,
        folder=folder,
        observers=observers,
        screen=screen if runner.trains else None,
        until_stable=until == UNTIL_STABLE,
    )
    state.remember(store.records(spec.name))
    state.announce()
    status = "failed"
    try:
        status = search(state)
    finally:
        store.finish_run(spec.name, status)
        mirror.close()
        screen.close()
        state.tell_observers(lambda o: o.ended(status))


def _database(folder: Path) -> str:
    return f"sqlite:///{folder / 'study.db'}"
