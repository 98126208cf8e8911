"""Searches that Ray Tune drives: its schedulers, resources and experiment folder; our study.

Tune asks a searcher for configurations and tells it how they ended. The searcher here answers from
whatever `Source` it is given, which is the search that also runs without Tune, so that the study
database is the same: each end is recorded as what it was, with everything that was measured. Plain
`OptunaSearch` records a trial that a scheduler stopped as complete, one that crashed without its
reason, and leaves trials behind that run for ever when the driver was killed.

Tune decides when a trial starts, where, and whether it is stopped early. A worker or node that is
lost is repeated by Tune, from the start.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autotune.core.context import Device
from autotune.core.errors import UnknownName
from autotune.core.workload import Workload, WorkloadFacts
from autotune.runners.ray import REPEATS, RayRunner
from autotune.runners.ray_cluster import Cluster
from autotune.trial.spec import Event, TrialSpec

if TYPE_CHECKING:
    from ray.tune import PlacementGroupFactory

    from autotune.runners.ray_searcher import Source

DEFAULT_SCHEDULER = "fifo"

_NEVER = 101
"""A percentage that no trial reaches: ASHA would stop trials that are about to be evaluated."""

_FIRST_STOP = 4
"""A scheduler stops no trial before this part of its steps is done: a quarter."""

RANKS = "layout.ranks"
"""The knob that decides how many devices a trial takes."""

_SETTINGS = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # an outcome has no loss
}


class TuneRunner:
    """Runs trials as Ray Tune's, between `drive`'s begin and end; else on agents, as `RayRunner`.

    Args:
        cluster: The cluster.
        limit_bytes: What a trial needs.
        jobs: Most trials at a time; None for one per accelerator, or as memory and cores allow.
        scheduler: One of `SCHEDULERS`.

    Attributes:
        name: What `--engine` takes: `"tune"`, or with a scheduler `"tune:asha"`.
        slots: Most trials at a time.
        devices: The device of each slot.
        threads: CPU threads for a trial.
        offered: What was submitted since Tune drives, and Tune has not taken.
    """

    trains = True

    def __init__(
        self,
        cluster: Cluster,
        *,
        limit_bytes: int,
        jobs: int | None = None,
        scheduler: str = DEFAULT_SCHEDULER,
    ) -> None:
        self.name = "tune" if scheduler == DEFAULT_SCHEDULER else f"tune:{scheduler}"
        self._scheduler = scheduler
        self._cluster = cluster
        self._agents = RayRunner(cluster, limit_bytes=limit_bytes, jobs=jobs)
        self._limit_bytes = limit_bytes
        self.slots = self._agents.slots
        self.devices: tuple[Device, ...] = self._agents.devices
        self.threads = self._agents.threads
        self.offered: list[TrialSpec] = []
        self._driving = False

    def describe(self, workload: Workload, cache: Path) -> WorkloadFacts:
        """Have the objective look at model and data on a node."""
        return self._agents.describe(workload, cache)

    def submit(self, spec: TrialSpec) -> None:
        """Offer a trial to Tune; while Tune does not drive, run it on an agent."""
        if self._driving:
            self.offered.append(spec)
        else:
            self._agents.submit(spec)

    def next(self, timeout: float | None = None) -> Event | None:
        """Return the next event of a trial on an agent."""
        return self._agents.next(timeout)

    def cancel(self, trial: int, reason: str) -> None:
        """End a trial on an agent; Tune ends its own."""
        self._agents.cancel(trial, reason)

    def now(self) -> float:
        """Return Unix seconds."""
        return self._agents.now()

    def close(self) -> None:
        """End everything."""
        self._agents.close()

    def drive(self, source: Source, folder: Path) -> None:
        """Let Tune run a search to its end, or until it is interrupted.

        Args:
            source: The search.
            folder: Where Tune keeps its experiment.
        """
        self._cluster.release()
        self._driving = True
        try:
            with _environment(_SETTINGS):
                self._fit(source, folder)
        finally:
            self._driving = False

    def _fit(self, source: Source, folder: Path) -> None:
        from ray import tune

        from autotune.runners.ray_searcher import Pulse, StudySearcher
        from autotune.runners.ray_trainable import TrialTrainable

        logging.getLogger("ray.tune").setLevel(logging.ERROR)
        gpus = self.devices[0].kind == "cuda"
        own = {"GPU": 1.0} if gpus else {"memory": float(self._limit_bytes)}
        wanted = partial(_resources, threads=self.threads, of_a_rank=own)
        trainable = tune.with_parameters(TrialTrainable, home=self._cluster.home)
        tuner = tune.Tuner(
            tune.with_resources(trainable, wanted),
            tune_config=tune.TuneConfig(
                num_samples=-1,
                search_alg=StudySearcher(source),
                scheduler=SCHEDULERS[self._scheduler](),
                reuse_actors=True,
                trial_name_creator=_name,
                trial_dirname_creator=_folder,
            ),
            run_config=tune.RunConfig(
                name=folder.name,
                storage_path=str(folder.parent.absolute()),
                failure_config=tune.FailureConfig(max_failures=REPEATS),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                callbacks=[Pulse(source)],
                verbose=0,
            ),
        )
        tuner.fit()


def check_scheduler(name: str) -> None:
    """Check that there is a scheduler of that name.

    Raises:
        UnknownName: If there is none.
    """
    if name not in SCHEDULERS:
        raise UnknownName.among("scheduler", name, SCHEDULERS)


def _resources(
    config: Mapping[str, Any], *, threads: int, of_a_rank: Mapping[str, float]
) -> PlacementGroupFactory:
    """Return what Tune is to reserve for a trial: all of it on one node."""
    from ray.tune import PlacementGroupFactory

    ranks = int(config["set"].get(RANKS, 1))
    bundle = {name: ranks * amount for name, amount in of_a_rank.items()}
    return PlacementGroupFactory([{"CPU": float(threads), **bundle}])


def _name(trial: Any) -> str:
    return f"trial-{trial.config['number']}"


def _folder(trial: Any) -> str:
    """Return a folder that no other part of the same trial has, if it pauses and goes on."""
    return f"{_name(trial)}-{trial.trial_id}"


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _fifo() -> Any:
    from ray.tune.schedulers import FIFOScheduler

    return FIFOScheduler()


def _asha() -> Any:
    from ray.tune.schedulers import ASHAScheduler

    first = 100 // _FIRST_STOP
    return ASHAScheduler(
        time_attr="progress", metric="loss", mode="min", max_t=_NEVER, grace_period=first
    )


def _median() -> Any:
    from ray.tune.schedulers import MedianStoppingRule

    return MedianStoppingRule(
        time_attr="progress", metric="loss", mode="min", grace_period=100 / _FIRST_STOP
    )


SCHEDULERS: Mapping[str, Callable[[], Any]] = {"fifo": _fifo, "asha": _asha, "median": _median}
"""Schedulers of Ray Tune by the name that `--engine tune:NAME` takes.

Their time is the percentage of the steps that is done, their metric the training loss. Those that
change the configuration of a running trial are left out: its record would not say what was trained.

References: Li et al. 2020, arXiv:1810.05934 (ASHA); Golovin et al. 2017 (median stopping rule).
"""
