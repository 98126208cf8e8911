"""Trials of tiny models to export, made in this process, and their scripts, run in it too."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import runpy
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from autotune.core.config import Config
from autotune.core.context import Device, ModelFacts
from autotune.core.domains import Value
from autotune.core.record import TrialRecord
from autotune.core.workload import RunSpec, Workload, WorkloadFacts
from autotune.export.base import Subject
from autotune.knobs import BUILTIN
from autotune.runners.devices import cpu_device
from autotune.trial.lifecycle import run_trial
from autotune.trial.measure import CpuMeter
from autotune.trial.objective import load_objective
from autotune.trial.progress import Progress
from autotune.trial.spec import TrialSpec
from tests import studies, tiny_folders

LIMIT = 2**34


def run_spec(facts: WorkloadFacts, device: Device, **change: object) -> RunSpec:
    """A run on one thread of a device."""
    return replace(
        studies.make_spec("tiny"), facts=facts, device=device.to_json(), overrides={}, **change
    )


def subject_of(
    config: Mapping[str, Value],
    *,
    objective: str = "causal_lm",
    family: str = "llama",
    device: Device | None = None,
    **change: object,
) -> Subject:
    """A trial that never ran, of a model that is not there."""
    workload = Workload(
        objective=objective, model="owner/model", data="texts.jsonl", steps=20, global_batch=8,
        sequence_length=64, eval_examples=16, learning_rate=1e-4,
    )  # fmt: skip
    facts = WorkloadFacts(
        workload=replace(workload, **change),
        model=ModelFacts(
            name="model", family=family, layers=4, heads=4, kv_heads=2 if family == "llama" else 4,
            hidden=64, ffn=128, vocab=100, parameters=10**6, pretrained=True,
        ),
        data="texts", data_fingerprint="0", metrics=studies.make_facts().metrics,
    )  # fmt: skip
    record = TrialRecord(number=3, config=Config(config, BUILTIN), outcome=studies.completed())
    return Subject(run="tiny", record=record, spec=run_spec(facts, device or cpu_device()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Workbench:
    """A tiny model with its data, on which configurations are tried.

    Attributes:
        facts: What the objective found.
        cache: Folder of prepared data.
    """

    facts: WorkloadFacts
    cache: Path

    @classmethod
    def of(cls, objective: str, folder: Path, *, own: bool = False, **change: int) -> Workbench:
        """A random model saved in a folder; the objective's own one with `own`."""
        sizes = {"steps": 4, "global_batch": 8, "sequence_length": 16, "eval_examples": 12}
        workload = Workload(
            objective=objective,
            model=None if own else str(tiny_folders.save_model(folder / "tiny", objective)),
            data=str(tiny_folders.write_rows(folder / "rows.jsonl")),
            **{**sizes, **change},
        )
        facts = load_objective(objective)(workload, folder / "cache").describe()
        gc.freeze()  # as in a trial's process: collections need not walk all that was imported
        return cls(facts=facts, cache=folder / "cache")

    def trial(self, config: Mapping[str, Value]) -> tuple[Subject, list[float]]:
        """Run a trial as its own process would, and return it with the loss of each step."""
        losses: list[float] = []

        def report(kind: str, data: dict[str, object]) -> None:
            if kind == "step":
                losses.append(float(str(data["loss"])))

        spec = TrialSpec(
            number=0, config=dict(config), facts=self.facts, device=cpu_device(), threads=1,
            limit_bytes=LIMIT, limit_seconds=60, cache=str(self.cache), log="",
        )  # fmt: skip
        torch.manual_seed(self.facts.workload.seed)
        outcome = run_trial(spec, Progress(meter=CpuMeter(), report=report))
        record = TrialRecord(
            number=0, config=Config(config, BUILTIN), outcome=outcome, limit_bytes=LIMIT
        )
        return Subject(run="tiny", record=record, spec=run_spec(self.facts, cpu_device())), losses


def run_script(folder: Path, *arguments: str) -> tuple[dict[str, float], list[float]]:
    """Run an exported script here, and return what it printed last, and the loss of each step."""
    said = io.StringIO()
    with _alone(folder, arguments), contextlib.redirect_stdout(said):
        runpy.run_path(str(folder / "train.py"), run_name="__main__")
    *steps, last = said.getvalue().splitlines()
    return json.loads(last), [float(step.split()[-1]) for step in steps]


@contextlib.contextmanager
def _alone(folder: Path, arguments: tuple[str, ...]) -> Iterator[None]:
    """Let modules beside a script be found, and be forgotten afterwards."""
    before, threads, modules = sys.argv, torch.get_num_threads(), ("memory", "techniques", "data")
    sys.argv = ["train.py", *arguments]
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        sys.argv = before
        torch.set_num_threads(threads)
        for name in modules:
            sys.modules.pop(name, None)
