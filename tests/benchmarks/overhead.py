"""Seconds that the engine adds to a trial over the bare training, beside fresh processes.

Three ways to do the same trainings of the same small model, in one run on one machine:

- `bare`: one process that has everything imported trains in a loop, no isolation, no measurement;
- `autotune`: the local runner, a process group per trial, peaks measured, budget enforced;
- `fresh`: plain Optuna by ask and tell, each training a fresh `python` process.

On a shared machine only the ratios mean something. Run with `make benchmark`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from autotune.core.outcome import Completed, outcome_from_json
from autotune.core.workload import Workload, WorkloadFacts
from autotune.runners.devices import cpu_device
from autotune.runners.local import LocalRunner
from autotune.trial.spec import TrialSpec

STEPS = 12


def make_spec(facts: WorkloadFacts, folder: Path, number: int) -> TrialSpec:
    """Return a trial of the baseline configuration on one thread."""
    return TrialSpec(
        number=number,
        config={},
        facts=facts,
        device=cpu_device(),
        threads=1,
        limit_bytes=8 * 2**30,
        limit_seconds=600,
        cache=str(folder / "cache"),
        log=str(folder / f"{number}.txt"),
    )


def engine_seconds(runner: LocalRunner, spec: TrialSpec) -> float:
    """Return seconds from submission to the outcome of one trial."""
    began = time.perf_counter()
    runner.submit(spec)
    while (event := runner.next()) is not None:
        if event.kind == "outcome":
            outcome = outcome_from_json(event.data)
            if not isinstance(outcome, Completed):
                raise SystemExit(f"the trial {outcome.summary}; see {spec.log}")
            return time.perf_counter() - began
    raise SystemExit("the trial ended without an outcome")


def child(arguments: argparse.Namespace) -> None:
    """Train as a user's own script would: print seconds of each training as JSON."""
    import torch

    from autotune.knobs.optimizers import build_optimizer
    from autotune.knobs.stages import DataPlan, EvalPlan, LoadPlan, OptimPlan, StepPlan
    from autotune.trial.loop import schedule, train_step
    from autotune.trial.objective import load_objective

    torch.set_num_threads(1)
    facts = WorkloadFacts.from_json(json.loads(Path(arguments.facts).read_text()))
    workload = facts.workload
    seconds = []
    for _ in range(arguments.repeats):
        began = time.perf_counter()
        objective = load_objective(workload.objective)(workload, Path(arguments.cache))
        model = objective.build(LoadPlan(), workload.seed)
        optimizer = build_optimizer(model.parameters(), OptimPlan(), workload.learning_rate)
        rates = schedule(optimizer, workload.steps)
        plan = DataPlan(
            sequence_length=workload.sequence_length, global_batch=workload.global_batch
        )
        batches = objective.train_batches(plan, workload.seed)
        for _ in range(workload.steps):
            train_step(
                objective, model, optimizer, next(batches), StepPlan(), device=torch.device("cpu")
            )
            rates.step()
        evaluation = EvalPlan(batch=workload.global_batch)
        objective.evaluate(
            model, objective.eval_batches(evaluation, workload.sequence_length), evaluation
        )
        seconds.append(time.perf_counter() - began)
    print(json.dumps(seconds))


def child_process(facts: Path, cache: Path, repeats: int) -> list[float]:
    """Run `child` in a fresh process and return what it printed."""
    command = [sys.executable, "-m", "tests.benchmarks.overhead", "--child", "--repeats"]
    command += [str(repeats), "--facts", str(facts), "--cache", str(cache)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [float(value) for value in json.loads(done.stdout.splitlines()[-1])]


def fresh_seconds(facts: Path, cache: Path, repeats: int) -> list[float]:
    """Return seconds of each trial of plain Optuna with a fresh process per trial."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(directions=["minimize", "minimize"])
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        trial = study.ask({"x": optuna.distributions.FloatDistribution(0, 1)})
        child_process(facts, cache, 1)
        study.tell(trial, [0.0, 0.0])
        seconds.append(time.perf_counter() - began)
    return seconds


def main() -> None:
    """Measure the three ways and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--facts", help=argparse.SUPPRESS)
    parser.add_argument("--cache", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        report(measure(folder, arguments.repeats), arguments.json)


def measure(folder: Path, repeats: int) -> dict[str, list[float]]:
    """Return seconds of each repeat by way."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    runner = LocalRunner(slots=1)
    workload = Workload(
        objective="causal_lm", steps=STEPS, global_batch=8, sequence_length=32, eval_examples=16
    )
    facts = runner.describe(workload, folder / "cache")
    path = folder / "facts.json"
    path.write_text(json.dumps(facts.to_json()))
    engine_seconds(runner, make_spec(facts, folder, 0))
    engine = [engine_seconds(runner, make_spec(facts, folder, n + 1)) for n in range(repeats)]
    runner.close()
    bare = child_process(path, folder / "cache", repeats + 1)[1:]
    fresh = fresh_seconds(path, folder / "cache", max(3, repeats // 2))
    return {"bare": bare, "autotune": engine, "fresh process": fresh}


def report(seconds: dict[str, list[float]], path: Path | None) -> None:
    """Print the table, and write the numbers if a file was named."""
    bare = statistics.median(seconds["bare"])
    rows = {
        way: {
            "median_seconds": round(statistics.median(values), 3),
            "min_seconds": round(min(values), 3),
            "max_seconds": round(max(values), 3),
            "added_seconds": round(statistics.median(values) - bare, 3),
            "repeats": len(values),
        }
        for way, values in seconds.items()
    }
    ratio = rows["fresh process"]["added_seconds"] / max(1e-9, rows["autotune"]["added_seconds"])
    print(f"{'way':<16}{'median s':>10}{'min s':>8}{'max s':>8}{'added s':>9}{'n':>4}")
    for way, row in rows.items():
        print(
            f"{way:<16}{row['median_seconds']:>10.3f}{row['min_seconds']:>8.3f}"
            f"{row['max_seconds']:>8.3f}{row['added_seconds']:>9.3f}{row['repeats']:>4}"
        )
    print(f"a fresh process adds {ratio:.1f} times what autotune adds")
    if path is not None:
        machine = {"cpu": cpu_device().name, "cores": os.cpu_count(), "load": os.getloadavg()}
        document = {
            "benchmark": "overhead",
            "python": platform.python_version(),
            "machine": machine,
            "ways": rows,
            "fresh_over_autotune": round(ratio, 2),
        }
        path.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
