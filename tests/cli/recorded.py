"""A run of nine trials, one for every way to end, recorded through the real store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from autotune.core.config import Config
from autotune.core.context import Device, ModelFacts
from autotune.core.domains import Value
from autotune.core.outcome import (
    Completed,
    Crashed,
    Diverged,
    Measurement,
    Outcome,
    OutOfMemory,
    Peak,
    PeakKind,
    Phase,
    Score,
    TimedOut,
)
from autotune.core.pareto import front
from autotune.core.record import Origin, TrialRecord
from autotune.core.space import find_space_text
from autotune.core.workload import Metric, RunSpec, Workload, WorkloadFacts
from autotune.knobs import BUILTIN
from autotune.storage.run import new_run_folder
from autotune.storage.store import Store

GIB = 2**30
DEVICE = Device(
    kind="cpu", name="Test CPU", total_bytes=32 * GIB, free_bytes=30 * GIB, cores=4, bf16=True
)
METRIC = Metric(name="accuracy", maximize=True, digits=3)
NAME = "bert-16gb"
LIMIT = int(16e9 * 0.97)


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def facts() -> WorkloadFacts:
    return WorkloadFacts(
        workload=Workload(
            objective="text_classification",
            steps=120,
            global_batch=32,
            sequence_length=128,
            eval_examples=500,
            learning_rate=3e-4,
        ),
        model=ModelFacts(
            name="bert-small", family="bert", layers=4, heads=8, kv_heads=8, hidden=512, ffn=2048,
            vocab=30522, parameters=28_763_648, pretrained=True,
        ),
        data="reviews.csv [2 000 texts]",
        data_fingerprint="0123456789ab",
        metrics=(METRIC, Metric(name="loss", maximize=False)),
    )  # fmt: skip


def spec(name: str = NAME, *, trials: int = 12) -> RunSpec:
    return RunSpec(
        name=name,
        facts=facts(),
        space="default",
        space_source=find_space_text("default")[0],
        budget_bytes=16 * 10**9,
        headroom=0.03,
        sampler="tpe",
        seed=0,
        trials=trials,
        time_limit=None,
        trial_limit=3600.0,
        jobs=1,
        threads=4,
        device=DEVICE.to_json(),
        versions={"torch": "2.13.0"},
    )


def measured(gib: float, *, speed: float = 1000.0) -> Measurement:
    peaks = tuple(
        Peak(phase=phase, kind=kind, bytes=int(gib * share * GIB + extra))
        for phase, share in (
            (Phase.LOAD, 0.4), (Phase.FIRST, 0.9), (Phase.STEADY, 1.0), (Phase.EVALUATE, 0.6)
        )
        for kind, extra in ((PeakKind.ALLOCATED, 0), (PeakKind.RESIDENT, 200 * 2**20))
    )  # fmt: skip
    shares = {
        "weights": 0.3,
        "gradients": 0.15,
        "optimizer": 0.3,
        "activations": 0.2,
        "other": 0.05,
    }
    return Measurement(
        peaks=peaks,
        anatomy={part: int(gib * share * GIB) for part, share in shares.items()},
        step_seconds=4096 / speed,
        throughput=speed,
        steps=120,
        parameters=28_763_648,
        trained_parameters=28_763_648,
    )


def completed(accuracy: float, gib: float, *, speed: float = 1000.0) -> Completed:
    return Completed(
        seconds=52.0,
        measurement=measured(gib, speed=speed),
        scores={
            "accuracy": Score(value=accuracy, stderr=0.0123, n=500),
            "loss": Score(value=1.0 - accuracy, stderr=0.02, n=500),
        },
    )


BUG = "ValueError: no [bold]markup[/bold] here"
TRIALS: tuple[tuple[Mapping[str, Value], Outcome | None], ...] = (
    ({}, OutOfMemory(
        seconds=6.0, phase=Phase.FIRST, step=0, needed_bytes=int(20.5 * GIB),
        message="tried to allocate 1.5 GiB", measurement=measured(14.0))),
    ({"precision": "bf16", "checkpointing": "full", "optimizer": "sgd", "prune.ffn": 0.75},
     completed(0.801, 2.25, speed=1220.0)),
    ({"precision": "bf16"}, completed(0.912, 12.6, speed=2310.0)),
    ({"precision": "bf16", "checkpointing": "full"}, completed(0.912, 8.1, speed=1760.0)),
    ({"precision": "bf16", "checkpointing": "full", "lora.rank": 16},
     completed(0.903, 4.4, speed=2100.0)),
    ({"precision": "bf16", "lora.rank": 16}, completed(0.899, 9.4, speed=2500.0)),
    ({"optimizer": "lion"}, Diverged(seconds=9.0, step=17, loss="nan")),
    ({"optimizer": "lion", "optimizer.bits": 8}, Crashed(
        seconds=2.0, exit_code=1, error=BUG,
        traceback=f'Traceback (most recent call last):\n  File "mine.py", line 3, in loss\n{BUG}')),
    ({"accumulation": 8}, TimedOut(seconds=3600.0, limit_seconds=3600.0, phase="steady")),
)  # fmt: skip
"""What was tried and what came of it."""


def records() -> list[TrialRecord]:
    """The trials as the loop would hold them."""
    origins = {0: Origin.BASELINE, 1: Origin.SMALLEST}
    found = [
        TrialRecord(
            number=number,
            config=Config(values, BUILTIN),
            origin=origins.get(number, Origin.SAMPLER),
            started=1_700_000_000.0 + 60.0 * number,
            outcome=outcome,
            limit_bytes=LIMIT,
        )
        for number, (values, outcome) in enumerate(TRIALS)
    ]
    members = {record.number for record in front(found, METRIC)}
    return [replace(record, on_front=record.number in members) for record in found]


def record_run(results: Path, name: str = NAME, *, status: str = "done") -> Path:
    """Write the run as the loop would, and return its folder."""
    folder = new_run_folder(results, name)
    clock = Clock()
    with Store.open(folder / "study.db", clock=clock) as store:
        store.start_run(spec(name))
        for record in records():
            store.add_trial(name, replace(record, outcome=None, on_front=False), BUILTIN)
            clock.now += record.outcome.seconds if record.outcome else 0.0
            store.finish_trial(name, record, METRIC)
            log = folder / "trials" / str(record.number) / "log.txt"
            log.parent.mkdir(parents=True)
            log.write_text(
                f"loading\n\x1b[31mtrial {record.number} [bold]said[/bold] this\x1b[0m\n"
            )
        store.set_front(name, [r.number for r in records() if r.on_front])
        store.finish_run(name, status)
    return folder
