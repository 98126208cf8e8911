"""Throughput of short trials on this machine and on Ray, beside what else would isolate them.

Every trial is a process of its own that trains a tiny network for half a second, most of it asleep,
so that cores are not what is measured. The share of the ideal is what workers that do nothing
between two trials would have taken, over what was taken. Beside it, in the same run: Ray Tune with
its `OptunaSearch`, whose trials sleep for half a second in an actor of their own, and a fresh
Python for every trial, which has to import torch and transformers first.

    python -m tests.benchmarks.cluster --trials 200 --json results/reference/cluster/throughput.json

`--parts local` measures one part alone; the file keeps what it says of the others.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from autotune.core.workload import Workload
from autotune.runners.base import Runner
from autotune.runners.local import LocalRunner
from autotune.runners.ray import RayRunner
from autotune.runners.ray_cluster import Cluster
from tests.contract.test_runners import OBJECTIVE, make_spec

STEPS = 8
SECONDS = 0.5
WORKERS = (1, 2, 4)
PEERS = 2
LIMIT = 2**30

FRESH = f"""
import time, torch, transformers
torch.set_num_threads(1)
model = torch.nn.Linear(16, 16)
time.sleep({SECONDS})
"""


def main() -> None:
    """Measure, print a line for each, and write them where they are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to run"
    )
    parser.add_argument("--trials", type=int, default=200, help="trials for each line")
    parser.add_argument("--peers", type=int, default=16, help="trials for each slow peer")
    parser.add_argument("--json", type=Path, help="where to write the measurements")
    arguments = parser.parse_args()
    os.environ["RAY_AUTH_MODE"] = "disabled"
    for name in arguments.parts:
        trials = arguments.peers if name == "peers" else arguments.trials
        part = {"rows": PARTS[name](trials), **circumstances()}
        print(json.dumps({"part": name, "load": part["load"]}), flush=True)
        if arguments.json:
            keep(arguments.json, name, part)


def circumstances() -> dict[str, Any]:
    """Say on what a part was measured, since parts may be measured at different times."""
    return {
        "trial_seconds": SECONDS,
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg(),
        "versions": {name: version(name) for name in ("ray", "torch", "transformers")},
    }


def keep(path: Path, name: str, part: dict[str, Any]) -> None:
    """Write one part into the file, beside the parts that it has already."""
    parts = json.loads(path.read_text())["parts"] if path.exists() else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"parts": parts | {name: part}}, indent=1) + "\n")


def local_part(trials: int) -> list[dict[str, Any]]:
    """Measure the runner of one machine."""
    return [measure("local", workers, trials) for workers in WORKERS]


def ray_part(trials: int) -> list[dict[str, Any]]:
    """Measure the runner on Ray."""
    with ray_here():
        return [measure("ray", workers, trials) for workers in WORKERS]


def peers_part(trials: int) -> list[dict[str, Any]]:
    """Measure what else would isolate trials."""
    with ray_here():
        rows = [row("ray tune + OptunaSearch", PEERS, trials, plain_tune(trials))]
    return [*rows, row("fresh process", PEERS, trials, fresh(trials, PEERS))]


@contextmanager
def ray_here() -> Iterator[None]:
    """Have a Ray of one node for a part."""
    import ray

    ray.init(
        address="local",
        num_cpus=max(WORKERS),
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=100 * 2**20,
    )
    try:
        yield
    finally:
        ray.shutdown()


def measure(kind: str, workers: int, trials: int) -> dict[str, Any]:
    """Run so many trials through a runner, from the first submission to the last outcome."""
    runner = MAKERS[kind](workers)
    try:
        with tempfile.TemporaryDirectory(prefix="cluster-") as folder:
            return row(kind, workers, trials, through(runner, trials, Path(folder)))
    finally:
        runner.close()


def through(runner: Runner, trials: int, folder: Path) -> float:
    """Return the seconds that trials take, once the first has shown that everything is warm."""
    trouble = json.dumps({"*": f"slow {SECONDS / STEPS}"})
    workload = Workload(objective=OBJECTIVE, data=trouble, steps=STEPS)
    facts = runner.describe(workload, folder / "cache")
    run_all(runner, [make_spec(facts, folder, number=-1, limit_bytes=LIMIT)])
    specs = [make_spec(facts, folder, number=n, limit_bytes=LIMIT) for n in range(trials)]
    began = time.monotonic()
    run_all(runner, specs)
    return time.monotonic() - began


def run_all(runner: Runner, specs: list[Any]) -> None:
    """Keep every slot full until all trials have ended."""
    waiting, running = list(specs), 0
    while waiting or running:
        while waiting and running < runner.slots:
            runner.submit(waiting.pop())
            running += 1
        event = runner.next(timeout=120)
        if event is None:
            raise RuntimeError("nothing was heard for two minutes")
        if event.kind == "outcome":
            if event.data["outcome"] != "completed":
                raise RuntimeError(f"a trial {event.data}")
            running -= 1


def plain_tune(trials: int) -> float:
    """Return the seconds that Ray Tune's own searcher and actors take."""
    import optuna
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.ERROR)

    def train(config: dict[str, Any]) -> None:
        time.sleep(SECONDS)
        tune.report({"loss": config["x"]})

    space = {"x": optuna.distributions.FloatDistribution(0.0, 1.0)}
    with tempfile.TemporaryDirectory(prefix="cluster-") as folder:
        storage = optuna.storages.RDBStorage(f"sqlite:///{folder}/study.db")
        search = OptunaSearch(space, metric="loss", mode="min", storage=storage, study_name="s")
        began = time.monotonic()
        tune.Tuner(
            tune.with_resources(train, {"CPU": 1}),
            tune_config=tune.TuneConfig(
                search_alg=search, num_samples=trials, max_concurrent_trials=2
            ),
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        ).fit()
        return time.monotonic() - began


def fresh(trials: int, workers: int) -> float:
    """Return the seconds that a new Python for each trial takes."""

    def one(_: int) -> None:
        subprocess.run([sys.executable, "-c", FRESH], check=True)

    began = time.monotonic()
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(one, range(trials)))
    return time.monotonic() - began


def row(kind: str, workers: int, trials: int, seconds: float) -> dict[str, Any]:
    """Put one measurement into words and numbers."""
    found = {
        "kind": kind,
        "workers": workers,
        "trials": trials,
        "seconds": round(seconds, 2),
        "share_of_ideal": round(SECONDS * trials / workers / seconds, 3),
        "overhead_seconds_per_trial": round(seconds * workers / trials - SECONDS, 3),
    }
    print(json.dumps(found), flush=True)
    return found


MAKERS: dict[str, Callable[[int], Runner]] = {
    "local": lambda workers: LocalRunner(slots=workers),
    "ray": lambda workers: RayRunner(Cluster(kind="cpu"), limit_bytes=LIMIT, jobs=workers),
}

PARTS: dict[str, Callable[[int], list[dict[str, Any]]]] = {
    "local": local_part,
    "ray": ray_part,
    "peers": peers_part,
}

if __name__ == "__main__":
    main()
