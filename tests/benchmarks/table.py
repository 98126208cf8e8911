"""A table of real trainings, which searches are measured on without training anything again.

Every legal combination of a few lossy knobs is trained once on the default task, in two legs as
rungs would, so that the score on the way is known too; every legal setting of the exact knobs is
rehearsed for each of them. `tests/benchmarks/search.py` reads the result.

    python -m tests.benchmarks.table --json results/reference/table.json

What has been trained is kept beside the file until all is done, so that a recording that was ended
goes on.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from autotune.core.companions import first_reason
from autotune.core.config import Config
from autotune.core.context import Context, Device
from autotune.core.domains import Value
from autotune.core.outcome import Completed, Outcome, Paused, outcome_from_json
from autotune.core.parts import continued
from autotune.core.units import gib
from autotune.core.workload import Workload, WorkloadFacts
from autotune.knobs import BUILTIN
from autotune.memory.rehearsal_worker import RehearsalWorker
from autotune.plan import context_of
from autotune.runners.devices import library_versions, pick_device
from autotune.runners.local import LocalRunner
from autotune.trial.spec import TrialSpec
from tests.benchmarks.ladder import make_spec

LOSSY: dict[str, tuple[Value, ...]] = {
    "precision": ("fp32", "bf16"),
    "prune.ffn": (0.0, 0.25, 0.5),
    "weight_bits": (16, 4),
    "lora.rank": (0, 4, 32),
    "optimizer": ("adamw", "lion"),
    "learning_rate": (0.3, 1.0, 3.0),
}
EXACT: dict[str, tuple[Value, ...]] = {
    "accumulation": (1, 2, 4, 8),
    "checkpointing": ("none", "full"),
}
LEGS = (1 / 3, 1.0)
"""Shares of the training at which the model is evaluated."""

NO_MEMORY = "learning_rate"
"""The knob that moves no memory: what is rehearsed for one rate holds for all."""

STEPS = 24
"""Optimizer steps: the fewest of which a third is enough to pause after."""


def combinations(
    values: Mapping[str, Sequence[Value]], context: Context, fixed: Mapping[str, Value]
) -> Iterator[dict[str, Value]]:
    """Yield every legal combination, on top of values that are fixed."""
    for chosen in product(*values.values()):
        config = dict(zip(values, chosen, strict=True))
        if first_reason(dict(Config({**fixed, **config}, BUILTIN)), BUILTIN, context) is None:
            yield config


class Recorder:
    """Trains and rehearses.

    Args:
        folder: For prepared data, checkpoints and logs.
        device: Where trials run.
        steps: Optimizer steps of each.
    """

    def __init__(self, folder: Path, device: Device, steps: int) -> None:
        self._folder = folder
        self._device = device
        self._runner = LocalRunner(slots=device.cores, preload=("peft",))
        workload = Workload(objective="text_classification", steps=steps)
        self.facts: WorkloadFacts = self._runner.describe(workload, folder / "cache")
        self.context = context_of(self.facts, device)

    def _spec(self, number: int, config: Mapping[str, Value]) -> TrialSpec:
        spec = make_spec(self.facts, self._device, self._folder, number, config)
        return replace(spec, threads=1, checkpoint=str(Path(spec.log).with_name("checkpoint")))

    def trained(
        self, configs: Sequence[Mapping[str, Value]]
    ) -> Iterator[tuple[Mapping[str, Value], dict[str, Any]]]:
        """Yield configurations with what training them came to, as many at once as fit."""
        waiting = list(enumerate(configs))[::-1]
        paused: dict[int, Paused | None] = {}
        while waiting or paused:
            while waiting and len(paused) < self._runner.slots:
                number, config = waiting.pop()
                paused[number] = None
                self._runner.submit(replace(self._spec(number, config), until=LEGS[0]))
            event = self._runner.next()
            if event is None or event.kind != "outcome":
                continue
            number, outcome = event.trial, outcome_from_json(event.data)
            if (before := paused[number]) is not None:
                outcome = continued(before, outcome)
            if isinstance(outcome, Paused):
                paused[number] = outcome
                until = LEGS[len(outcome.rungs)]
                self._runner.submit(replace(self._spec(number, configs[number]), until=until))
                continue
            del paused[number]
            Path(self._spec(number, {}).checkpoint).unlink(missing_ok=True)
            yield configs[number], self._row(outcome)

    def _row(self, outcome: Outcome) -> dict[str, Any]:
        seconds = round(outcome.seconds, 2)
        if not isinstance(outcome, Completed):
            return {"failed": outcome.tag, "seconds": seconds}
        metric, steps = self.facts.metric.name, self.facts.workload.steps
        score = outcome.scores[metric]
        on_the_way = [[rung.step, rung.scores[metric].value] for rung in outcome.rungs]
        return {
            "score": score.value,
            "stderr": score.stderr,
            "curve": [*on_the_way, [steps, score.value]],
            "seconds": seconds,
            "measured_bytes": outcome.measurement.peak_bytes,
            "failed": None,
        }

    def peaks(
        self,
        worker: RehearsalWorker,
        config: Mapping[str, Value],
        exact: Sequence[dict[str, Value]],
    ) -> dict[str, int]:
        """Return rehearsed peak bytes by the values of the exact knobs."""
        return {
            "|".join(str(value) for value in setting.values()): worker.rehearse(
                self._spec(0, {**config, **setting})
            ).peak_bytes
            for setting in exact
        }

    def close(self) -> None:
        """End what runs."""
        self._runner.close()


def record(path: Path, folder: Path, steps: int) -> None:
    """Train and rehearse what is not in the file yet."""
    parts = path.with_suffix(".parts")
    known = [json.loads(line) for line in parts.read_text().splitlines()] if parts.exists() else []
    device = pick_device("cpu")
    recorder = Recorder(folder, device, steps)
    exact = list(combinations(EXACT, recorder.context, {}))
    configs = list(combinations(LOSSY, recorder.context, {}))
    known = [row for row in known if row["config"] in configs]
    left = [c for c in configs if c not in [row["config"] for row in known]]
    print(
        f"{len(configs)} configurations by {len(exact)} settings, {len(left)} to train", flush=True
    )

    def keep(config: Mapping[str, Value], row: Mapping[str, Any], peaks: dict[str, int]) -> None:
        known.append({"config": dict(config), **row, "peaks": peaks})
        with parts.open("a") as file:
            file.write(json.dumps(known[-1]) + "\n")
        shown = row["failed"] or f"{row['score']:.3f}"
        least = gib(min(peaks.values()), 3)
        print(len(known), shown, least, Config(config, BUILTIN).describe(BUILTIN), flush=True)

    done = deque[tuple[Mapping[str, Value], Mapping[str, Any], Future[dict[str, int]]]]()
    try:
        with RehearsalWorker() as worker, ThreadPoolExecutor(1) as beside:
            peaks: dict[Config, Future[dict[str, int]]] = {}
            for config in left:
                if (alike := _without_rate(config)) not in peaks:
                    peaks[alike] = beside.submit(recorder.peaks, worker, alike, exact)
            for config, row in recorder.trained(left):
                done.append((config, row, peaks[_without_rate(config)]))
                while done and done[0][2].done():
                    keep(*done[0][:2], done.popleft()[2].result())
            for config, row, late in done:
                keep(config, row, late.result())
    finally:
        recorder.close()
    write(path, recorder, known)
    parts.unlink()


def _without_rate(config: Mapping[str, Value]) -> Config:
    return Config({n: v for n, v in config.items() if n != NO_MEMORY}, BUILTIN)


def write(path: Path, recorder: Recorder, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the table."""
    head = {
        "benchmark": "table",
        "model": recorder.facts.model.name,
        "data": recorder.facts.data,
        "metric": recorder.facts.metric.name,
        "device": pick_device("cpu").to_json(),
        "versions": library_versions(),
        "steps": recorder.facts.workload.steps,
        "space": {name: list(values) for name, values in {**LOSSY, **EXACT}.items()},
        "lossy": list(LOSSY),
        "exact": list(EXACT),
    }
    lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
    path.write_text(json.dumps(head)[:-1] + ', "rows": [\n' + lines + "\n]}\n")


def main() -> None:
    """Record the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        record(arguments.json, Path(name), arguments.steps)


if __name__ == "__main__":
    main()
