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

from autotune.cluster import ENGINES, engine_of, remote_runner, runner_again
from autotune.core.budget import Budget
from autotune.core.config import Config
from autotune.core.errors import UnknownName, UsageError
from autotune.core.observer import Observer
from autotune.driver import HEARTBEAT_SECONDS, Search
from autotune.engine import search_by_tune
from autotune.fit import check_that_something_fits
from autotune.memory.rehearsal_worker import RehearsalWorker
from autotune.plan import (
    DEFAULT_OBJECTIVE,
    DEFAULT_TRIAL_SECONDS,
    DEFAULT_TRIALS,
    LOCAL,
    UNTIL_STABLE,
    Plan,
    Settings,
    local_runner,
    make_plan,
    plan_again,
    settings_again,
)
from autotune.runners.base import Runner
from autotune.runners.local import LocalRunner
from autotune.runners.probe import LocalProber
from autotune.runners.ray_tune import TuneRunner
from autotune.search.proposers import DEFAULT_SAMPLER, Task, check_learner, make_proposer
from autotune.search.rehearsals import rehearsed_bytes
from autotune.search.rungs import OFF, Rungs
from autotune.search.screen import Screen
from autotune.search.seeds import checked_repeats, search_seconds
from autotune.search.study import StudyMirror
from autotune.search.warm_start import Earlier, earlier_run
from autotune.seeds import repeat_near_front
from autotune.storage.buffered import LOCKED_SECONDS, BufferedStore
from autotune.storage.engine import said
from autotune.storage.migrate import alone
from autotune.storage.run import Run, new_run_folder
from autotune.timelines import keep_best
from autotune.trackers.choice import with_trackers


def search(state: Search) -> str:
    """Run the loop to its end.

    Args:
        state: Who takes part, and what is known so far.

    Returns:
        How the run ended: `"done"`, or `"interrupted"` by Ctrl-C or `autotune stop`.

    Raises:
        NothingFits: If not even the smallest configuration fits the budget.
    """
    limit, runner = search_seconds(state.plan.spec), state.runner
    began = runner.now() - state.seconds_before
    more = True
    try:
        while more or state.running:
            more = more and (limit is None or runner.now() - began < limit)
            more = more and not state.stop_if_asked()
            while more and len(state.running) < runner.slots and not state.undecided:
                if not state.submit_next():
                    more = state.climb.rungs.on and bool(state.running)  # it may go on
                    break
            if (event := runner.next(state.store.attempt_in(HEARTBEAT_SECONDS))) is None:
                state.store.heartbeat(state.name)
            else:
                state.hear(event)
                check_that_something_fits(state)
    except KeyboardInterrupt:
        state.interrupt()
        return "interrupted"
    if kept := state.climb.note(state.records):
        state.note(kept)
    return "interrupted" if state.stopped else "done"


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
    devices: int = 1,
    trial_seconds: float = DEFAULT_TRIAL_SECONDS,
    until: str = "",
    rungs: str = OFF,
    repeats: str = OFF,
    warm_start: str | None = None,
    engine: str = ENGINES[0],
    name: str | None = None,
    results: str | Path = "results",
    storage: str | None = None,
    runner: Runner | str = LOCAL,
    address: str | None = None,
    observers: Sequence[Observer] = (),
    track: str | Sequence[str] = (),
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
        devices: Devices, or CPU processes, that one trial may use; see the knobs `layout`.
        trial_seconds: Most seconds for one trial.
        until: `"stable"` to end when a further trial is expected to add next to nothing.
        rungs: Shares of a training at which trials pause and only the best go on, such as
            `"1/9,1/3"`, which is `"auto"`; `trials` then counts full trainings. `"off"` for none.
        repeats: `"auto"` to train trials near the front with further seeds at the end until their
            order is settled, a number to do so that often; scores are then means. `"off"` for none.
        warm_start: An earlier run of the same objective that the search learns from first, in the
            same database or results.
        engine: `"autotune"`, or `"tune"` to let Ray Tune drive; `"tune:asha"` with a scheduler.
        name: Of the run and its folder; None for a new one.
        results: Where runs are kept.
        storage: SQLAlchemy URL of the study database; None for SQLite in the run's folder.
        runner: `"local"` for this machine, `"ray"` for a cluster, or a runner of one's own.
        address: Of the Ray cluster: `"auto"` or `"host:port"`; None to start a Ray of one's own.
        observers: Told what happens.
        track: Trackers that log every trial: `"tensorboard"`, `"mlflow"`, `"wandb"`.

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
        devices=devices,
        trial_seconds=trial_seconds,
        until=until,
        rungs=rungs,
        repeats=repeats,
        warm_start=warm_start,
        runner=runner if isinstance(runner, str) else LOCAL,
        address=address,
        engine=engine,
    )
    own, observers = None if isinstance(runner, str) else runner, with_trackers(observers, track)
    return start(
        settings, name=name, results=results, storage=storage, runner=own, observers=observers
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
    used = runner or remote_runner(settings) or local_runner(settings)
    try:
        folder = new_run_folder(results, name)
        try:
            plan = make_plan(settings, used, name=folder.name, cache=folder / "cache")
            plan, earlier = warmed(plan, results, storage)
        except UsageError:
            shutil.rmtree(folder)  # nothing in it but what was prepared for a run that is not
            raise
        database = storage or _database(folder)
        with BufferedStore.open(database, clock=used.now, busy=LOCKED_SECONDS) as store:
            store.start_run(plan.spec)
            _conduct(plan, store, database, used, folder, observers, earlier=earlier)
        return Run.open(folder.name, results=results, storage=storage)
    finally:
        used.close()


def resume(
    run: str | None = None,
    *,
    trials: int | None = None,
    extra: int = 0,
    time: float | None = None,
    repeats: str | None = None,
    results: str | Path = "results",
    storage: str | None = None,
    runner: Runner | None = None,
    address: str | None = None,
    observers: Sequence[Observer] = (),
    track: str | Sequence[str] = (),
) -> Run:
    """Continue a run: trials that were interrupted are repeated, settings come from the run.

    Args:
        run: Name of the run; None for the latest.
        trials: Most trials in all; None for as many as before. Whoever asks for more gets them,
            also of a run that was to end when it was stable.
        extra: Trials on top of that.
        time: Most seconds in all; None for as before, or for no limit if trials are given.
        repeats: As for `tune`; None for as before. A run that is done is not searched on for them.
        results: Where runs are kept.
        storage: SQLAlchemy URL of the study database, if it is not in the run's folder.
        runner: Runs the trials; None for one like the run's own.
        address: Of the Ray cluster, for a run that was on one.
        observers: Told what happens.
        track: As for `tune`.

    Returns:
        The finished or interrupted run.

    Raises:
        AutotuneError: If there is no such run, or what it needs is not there any more.
    """
    observers = with_trackers(observers, track)
    found = Run.open(run, results=results, storage=storage)
    most = (trials if trials is not None else found.spec.trials) + extra
    asked_for_more = trials is not None or extra > 0
    limit = found.spec.time_limit if time is None and not asked_for_more else time
    until = "" if asked_for_more else found.spec.until
    spec = replace(found.spec, trials=most, time_limit=limit, until=until)
    if repeats is not None:
        spec = replace(spec, repeats=checked_repeats(repeats, engine_of(spec)))
    no_more = time is None and not asked_for_more
    searched = found.status == "done" and repeats is not None and no_more
    used = runner or runner_again(spec, address) or local_runner(settings_again(spec))
    try:
        plan, earlier = warmed(plan_again(spec, used), results, storage)
        folder, database = found.folder, storage or _database(found.folder)
        with BufferedStore.open(
            database, create=False, clock=used.now, busy=LOCKED_SECONDS
        ) as store:
            store.resume_run(plan.spec)
            _conduct(
                plan, store, database, used, folder, observers, earlier=earlier, searched=searched
            )
        return Run.open(found.name, results=results, storage=storage)
    finally:
        used.close()


def warmed(plan: Plan, results: str | Path, storage: str | None) -> tuple[Plan, Earlier | None]:
    """Open the run that a search learns from first: in its database, else among the results.

    Args:
        plan: Names that run; empty for none.
        results: Where runs are kept.
        storage: SQLAlchemy URL of the study database; None for that in the run's folder.

    Returns:
        The plan with the run's whole name, and what there is to learn.

    Raises:
        UsageError: If the sampler cannot learn from it, if there is none, or if it has nothing to
            teach.
    """
    spec = plan.spec
    if not spec.warm_start:
        return plan, None
    check_learner(spec.sampler)
    try:
        found = Run.open(spec.warm_start, results, storage)
    except UnknownName:
        if storage is None:
            raise
        found = Run.open(spec.warm_start, results)
    earlier = earlier_run(found.spec, found.records, new=spec, space=plan.space)
    return replace(plan, spec=replace(spec, warm_start=found.name)), earlier


def _conduct(
    plan: Plan,
    store: BufferedStore,
    database: str,
    runner: Runner,
    folder: Path,
    observers: Sequence[Observer],
    *,
    earlier: Earlier | None = None,
    searched: bool = False,
) -> None:
    """Search, unless that is done, repeat, and leave the run in a state that says how it ended."""
    spec, worker = plan.spec, RehearsalWorker()

    def rehearse(config: Config) -> int | None:
        return rehearsed_bytes(state.trial_spec_of(config), worker)

    task = Task(
        space=plan.space,
        context=plan.context,
        metric=spec.facts.metric,
        limit_bytes=plan.budget.limit_bytes,
        seed=spec.seed,
        trials=spec.trials,
        time_limit=search_seconds(spec),
        slots=runner.slots,
        rehearse=rehearse if runner.trains else None,
        earlier=earlier,
        rungs=Rungs.of(spec.rungs, spec.facts.workload.steps),
    )
    with said(database), alone(store.engine):  # Optuna makes its tables, too
        mirror = StudyMirror(database, spec.name, plan.space)
    screen = Screen(
        worker,
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
        until_stable=spec.until == UNTIL_STABLE,
    )
    store.tell = lambda text: state.tell_observers(lambda o: o.note(text))
    state.remember(store.records(spec.name))
    state.announce()
    if earlier is not None:
        state.tell_observers(lambda o: o.note(earlier.sentence))
    began, status = runner.now() - state.seconds_before, "failed"
    try:
        if isinstance(runner, TuneRunner):
            status = search_by_tune(state, runner)
        else:
            status = "done" if searched else search(state)
        if status == "done" and spec.repeats:
            limit = None if searched else spec.time_limit
            status = repeat_near_front(state, None if limit is None else began + limit)
        if status == "done" and runner.trains:
            keep_best(state, worker, runner.now() - began)
    finally:
        store.finish_run(spec.name, status)
        mirror.close()
        screen.close()
        state.tell_observers(lambda o: o.ended(status))


def _database(folder: Path) -> str:
    return f"sqlite:///{folder / 'study.db'}"
