"""Which machines a run uses: this one, or those of a Ray cluster, by our loop or by Ray Tune.

`remote_runner` returns None for this machine, where `plan.local_runner` knows what to do.
"""

from __future__ import annotations

from dataclasses import replace

from autotune.core.budget import Budget
from autotune.core.errors import BadValue, UnknownName
from autotune.core.workload import RunSpec
from autotune.plan import LOCAL, Settings, check_jobs, preload_for, resolve_budget, settings_again
from autotune.runners.base import Runner
from autotune.runners.ray import RayRunner
from autotune.runners.ray_cluster import Cluster
from autotune.runners.ray_tune import DEFAULT_SCHEDULER, TuneRunner, check_scheduler

TUNE = "tune"
RUNNERS = (LOCAL, RayRunner.name)
"""Where trials can run, by what `--runner` takes."""

ENGINES = ("autotune", TUNE)
"""Who can drive a search, by what `--engine` takes; Tune's may have a scheduler: `tune:asha`."""


def remote_runner(settings: Settings) -> Runner | None:
    """Return a runner on a Ray cluster, or None if trials run on this machine.

    Without an address, and without `RAY_ADDRESS`, a Ray of one's own is started on this machine.

    Args:
        settings: What the user chose.

    Raises:
        UnknownName: If there is no such runner or engine.
        BadValue: If the budget is malformed or larger than every device, `jobs` is below 1, or
            there is an address but no cluster is asked for.
        MissingLibrary: If ray is not installed.
        UsageError: If there is no cluster at the address, or nothing in it that can be used.
    """
    _check(settings)
    engine, _, scheduler = settings.engine.partition(":")
    if settings.runner == LOCAL and engine != TUNE:
        return None
    check_jobs(settings)
    kind = settings.device
    cluster = Cluster(settings.address, kind, preload_for(kind or "cpu"))
    try:
        devices = sorted((p.device for p in cluster.places), key=lambda d: d.total_bytes)
        asked = settings.budget
        size = Budget.parse(asked) if isinstance(asked, str) and asked != "auto" else asked
        least = size.total_bytes if isinstance(size, Budget) else 0
        fitting = [d for d in devices if d.total_bytes >= least] or devices[-1:]
        limit = resolve_budget(asked, fitting[0]).total_bytes
        if engine != TUNE:
            return RayRunner(cluster, limit_bytes=limit, jobs=settings.jobs)
        chosen = scheduler or DEFAULT_SCHEDULER
        return TuneRunner(cluster, limit_bytes=limit, jobs=settings.jobs, scheduler=chosen)
    except BaseException:
        cluster.close()
        raise


def runner_again(spec: RunSpec, address: str | None = None) -> Runner | None:
    """Return a runner like the one that a run had; None if that was this machine.

    Args:
        spec: What the run depended on.
        address: Of the cluster, as for `remote_runner`.

    Raises:
        AutotuneError: As `remote_runner` does.
    """
    known = spec.runner in RUNNERS
    settings = replace(
        settings_again(spec),
        device=None if spec.runner == LOCAL else str(spec.device["kind"]),
        runner=spec.runner if known else LOCAL,
        engine=ENGINES[0] if known else spec.runner,
        address=address,
    )
    return remote_runner(settings)


def engine_of(spec: RunSpec) -> str:
    """Return who drove a run, by what `--engine` takes."""
    return spec.runner if spec.runner.partition(":")[0] == TUNE else ENGINES[0]


def _check(settings: Settings) -> None:
    engine, _, scheduler = settings.engine.partition(":")
    for kind, name, known in (("runner", settings.runner, RUNNERS), ("engine", engine, ENGINES)):
        if name not in known:
            raise UnknownName.among(kind, name, known)
    if engine == TUNE:
        check_scheduler(scheduler or DEFAULT_SCHEDULER)
    elif scheduler:
        raise BadValue(
            f"engine '{engine}' has no scheduler '{scheduler}'",
            where="--engine",
            help=f"write --engine {TUNE}:{scheduler}",
        )
    if settings.address is not None and (settings.runner, settings.engine) == (LOCAL, ENGINES[0]):
        raise BadValue(
            f"'{settings.address}' is the address of a cluster, but trials run on this machine",
            where="--address",
            help="add --runner ray",
        )
