"""Ray Tune drives, the study stays right; and what plain OptunaSearch makes of the same trials."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import optuna
import pytest

from autotune.cluster import remote_runner
from autotune.core.outcome import Completed, Crashed, OutOfMemory, Stopped
from autotune.plan import Settings
from autotune.runners.ray_tune import TuneRunner
from autotune.search.study import NUMBER, OUTCOME
from autotune.storage.run import Run
from autotune.storage.store import Store
from autotune.tuner import resume, tune
from tests.integration.test_search import ROOT, SPACE, settings, wait_for_trial
from tests.rays import ENVIRONMENT, Nodes, needs_ray

pytestmark = [pytest.mark.training, needs_ray]

TROUBLES = {"2": "segfault", "8": "slow 0.3", "16": "allocate 900", "32": "raise"}


@pytest.fixture
def space(tmp_path: Path) -> str:
    path = tmp_path / "troubled.yaml"
    path.write_text(SPACE)
    return str(path)


def runner_of(engine: str, jobs: int) -> TuneRunner:
    made = remote_runner(Settings(budget="500MB", engine=engine, jobs=jobs, device="cpu"))
    assert isinstance(made, TuneRunner)
    made.trains = False  # nobody rehearses its trials before, which would take seconds to start
    return made


def study_of(run: Run) -> list[optuna.trial.FrozenTrial]:
    """What the Optuna study in the run's database says."""
    url = f"sqlite:///{run.folder / 'study.db'}"
    return optuna.load_study(study_name=run.name, storage=url).trials


def test_every_end_is_in_the_study_as_what_it_was(
    ray_nodes: Nodes, space: str, tmp_path: Path
) -> None:
    more = {"trials": 5, "name": "run", "overrides": {"learning_rate": "1.0"}}
    where = settings(space, tmp_path / "r", TROUBLES, **more, sampler="random")
    run = tune(**where, runner=runner_of("tune", 1))
    assert run.status == "done"
    assert run.spec.runner == "tune"
    ends = {r.config.get("accumulation", 1): r.outcome for r in run.records}
    kinds = {1: Completed, 2: Crashed, 4: Completed, 8: Completed, 16: OutOfMemory, 32: Crashed}
    assert {value: type(end) for value, end in ends.items()}.items() <= kinds.items()
    assert isinstance(ends[32], Crashed)
    assert ends[32].error == "ValueError: a bug in the user's code"
    assert ends[1] is not None
    assert ends[1].measurement.anatomy["optimizer"] > 0
    trials = study_of(run)
    assert sorted(trial.user_attrs[NUMBER] for trial in trials) == list(range(5))
    by_end = {r.number: r.outcome.tag for r in run.records if r.outcome}
    assert {t.user_attrs[NUMBER]: t.user_attrs[OUTCOME] for t in trials} == by_end
    assert all("memory" in trial.constraints for trial in trials)
    assert not any(trial.state is optuna.trial.TrialState.RUNNING for trial in trials)
    (experiment,) = (run.folder / "tune").iterdir()
    assert len(list(experiment.glob("trial-*/result.json"))) == 5
    with Store.open(run.folder, create=False) as store:
        phases = Counter(e.trial for e in store.events("run") if e.kind == "phase")
    assert phases[0] == 4


def test_what_a_scheduler_stops_is_stopped(ray_nodes: Nodes, space: str, tmp_path: Path) -> None:
    more = {"trials": 4, "name": "run", "steps": 16}
    where = settings(space, tmp_path / "r", {"*": "slow 0.25"}, **more, sampler="random")
    where |= {"overrides": {"accumulation": "1,2", "learning_rate": "0.3,1.0"}}
    run = tune(**where, runner=runner_of("tune:asha", 2))
    ends = [type(r.outcome) for r in run.records]
    assert set(ends) == {Completed, Stopped}, ends
    assert len(ends) == 4
    stopped = next(r.outcome for r in run.records if isinstance(r.outcome, Stopped))
    assert 0 < stopped.step < 16
    assert stopped.reason == "by the scheduler of Ray Tune"
    finished = [t for t in study_of(run) if t.state is optuna.trial.TrialState.COMPLETE]
    assert len(finished) == ends.count(Completed)


def test_a_driver_that_is_killed_leaves_no_zombies(
    ray_nodes: Nodes, space: str, tmp_path: Path
) -> None:
    more = {"trials": 4, "name": "run", "overrides": {"accumulation": "1,2"}, "jobs": 2}
    arguments = settings(space, str(tmp_path / "r"), {"*": "slow 0.2"}, **more)
    arguments |= {"engine": "tune", "address": ray_nodes.address, "sampler": "random"}
    program = f"from autotune.tuner import tune\ntune(**{arguments!r})"
    driver = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, **ENVIRONMENT},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for_trial(tmp_path / "r", "run", 2)
    finally:
        driver.kill()
        driver.wait()
    again = resume("run", results=tmp_path / "r")
    assert [r.number for r in again.records] == [0, 1, 2, 3]
    assert all(isinstance(r.outcome, Completed) for r in again.records)
    trials = study_of(again)
    assert Counter(trial.state for trial in trials) == {optuna.trial.TrialState.COMPLETE: 4}
    assert sorted(trial.user_attrs[NUMBER] for trial in trials) == [0, 1, 2, 3]


def test_plain_optuna_search_takes_stopped_trials_for_complete_and_says_no_reason(
    ray_nodes: Nodes, tmp_path: Path
) -> None:
    """What the engine is for: the same kinds of trials through Tune's own searcher."""
    from ray import tune as ray_tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    url = f"sqlite:///{tmp_path / 'plain.db'}"
    storage = optuna.storages.RDBStorage(url)

    def train(config: dict[str, Any]) -> None:
        for step in range(1, 9):
            time.sleep(0.05)
            if config["x"] < 0.2 and step == 2:
                raise MemoryError("out of memory")
            ray_tune.report({"loss": config["x"] + 1 / step, "memory": 1.0, "step": step})

    space = {"x": optuna.distributions.FloatDistribution(0.0, 1.0)}
    points = [{"x": 0.1}, {"x": 0.3}, {"x": 0.8}, {"x": 0.9}]
    search = OptunaSearch(
        space,
        metric=["loss", "memory"],
        mode=["min", "min"],
        storage=storage,
        study_name="plain",
        points_to_evaluate=points,
    )
    scheduler = ASHAScheduler(
        time_attr="step", metric="loss", mode="min", max_t=8, grace_period=2, reduction_factor=2
    )
    ray_tune.Tuner(
        ray_tune.with_resources(train, {"CPU": 1}),
        tune_config=ray_tune.TuneConfig(
            search_alg=search, scheduler=scheduler, num_samples=4, max_concurrent_trials=1
        ),
        run_config=ray_tune.RunConfig(storage_path=str(tmp_path / "plain"), verbose=0),
    ).fit()
    trials = optuna.load_study(study_name="plain", storage=url).trials
    states = {trial.params["x"]: trial.state for trial in trials}
    values = {trial.params["x"]: trial.values for trial in trials}
    assert states[0.1] is optuna.trial.TrialState.FAIL
    assert not any("memory" in str(trial.user_attrs) for trial in trials), "it tells the reason"
    assert not any(trial.constraints for trial in trials), "it tells of constraints"
    stopped = [x for x in (0.8, 0.9) if values[x] and values[x][0] > x + 1 / 8 + 1e-9]
    assert stopped, "nothing was stopped"
    assert all(states[x] is optuna.trial.TrialState.COMPLETE for x in stopped)
