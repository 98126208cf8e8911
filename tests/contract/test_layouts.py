"""What every layout owes: the training of one rank, to rounding, measured on each rank.

Each layout trains for real, on two or four processes, through the same runner as any trial. The
loss of the last step, the scores and the kept checkpoint are held against those of one rank.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from autotune.core.domains import Value
from autotune.core.outcome import (
    Completed,
    Crashed,
    Outcome,
    OutOfMemory,
    PeakKind,
    Phase,
    outcome_from_json,
)
from autotune.core.workload import Workload, WorkloadFacts
from autotune.memory.rehearsal_worker import RehearsalWorker
from autotune.runners.devices import cpu_device
from autotune.runners.local import LocalRunner
from autotune.trial.layouts.group import together
from autotune.trial.spec import Part, TrialSpec
from tests.contract.test_runners import describe, make_spec

pytestmark = pytest.mark.training

STEPS = 6
TRAINING = (Phase.FIRST, Phase.STEADY)
TOLERANCE = 2e-5
"""Relative, of the loss of the last step: sums over ranks are made in another order."""

LAYOUTS: tuple[Mapping[str, Value], ...] = (
    {"layout.ranks": 2},
    {"layout.ranks": 2, "accumulation": 2, "checkpointing": "full"},
    {"layout.ranks": 2, "layout.data": "zero1"},
    {"layout.ranks": 2, "layout.data": "zero2", "loss_chunks": 4},
    {"layout.ranks": 2, "layout.data": "zero3", "accumulation": 2},
    {"layout.ranks": 4, "layout.data": "zero3", "layout.shards": 2, "checkpointing": "full"},
    {"layout.ranks": 2, "layout.tensor": 2},
    {"layout.ranks": 4, "layout.tensor": 2},
    {"layout.ranks": 4, "layout.tensor": 2, "layout.data": "zero3"},
    {"layout.ranks": 2, "layout.pipeline": 2, "accumulation": 4},
    {"layout.ranks": 4, "layout.pipeline": 2, "accumulation": 2, "layout.schedule": "gpipe"},
    {"layout.ranks": 2, "layout.context": 2},
    {"layout.ranks": 4, "layout.context": 2, "layout.data": "zero1"},
    {"layout.ranks": 3, "layout.data": "server"},
)


@dataclass(frozen=True)
class Ran:
    """How a trial ended, and the loss of each step."""

    outcome: Outcome
    losses: list[float]


@pytest.fixture(scope="module")
def runner() -> Iterator[LocalRunner]:
    runner = LocalRunner(slots=1)
    yield runner
    runner.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("layouts")


@pytest.fixture(scope="module")
def facts(runner: LocalRunner, folder: Path) -> WorkloadFacts:
    workload = Workload(
        objective="causal_lm", steps=STEPS, global_batch=8, sequence_length=32, eval_examples=16
    )
    return runner.describe(workload, folder / "cache")


def spec_of(
    facts: WorkloadFacts, folder: Path, config: Mapping[str, Value], name: str
) -> TrialSpec:
    """A probe of a configuration."""
    return TrialSpec(
        number=0, config=config, facts=facts, device=cpu_device(), threads=2, probe=True,
        limit_bytes=2 * 2**30, limit_seconds=240.0, cache=str(folder / "cache"),
        log=str(folder / f"{name}.txt"),
    )  # fmt: skip


def train(
    runner: LocalRunner, facts: WorkloadFacts, folder: Path, config: Mapping[str, Value]
) -> Ran:
    """Train a configuration, keep its model, and return how it went."""
    name = "-".join(f"{key}={value}" for key, value in config.items()) or "alone"
    spec = spec_of(facts, folder, config, name)
    runner.submit(replace(spec, probe=False, keep=str(folder / name)))
    losses: list[float] = []
    while (event := runner.next(timeout=240)) is not None:
        if event.kind == "step":
            losses.append(event.data["loss"])
        elif event.kind == "outcome":
            return Ran(outcome_from_json(event.data), losses)
    raise AssertionError("the trial ended without an outcome")


@pytest.fixture(scope="module")
def worker() -> Iterator[RehearsalWorker]:
    with RehearsalWorker() as worker:
        yield worker


@pytest.fixture(scope="module")
def alone(runner: LocalRunner, facts: WorkloadFacts, folder: Path) -> Ran:
    return train(runner, facts, folder, {})


@pytest.mark.parametrize("config", LAYOUTS, ids=lambda c: "-".join(map(str, c.values())))
def test_a_layout_trains_as_one_rank_does(
    config: Mapping[str, Value],
    runner: LocalRunner,
    facts: WorkloadFacts,
    folder: Path,
    worker: RehearsalWorker,
    alone: Ran,
) -> None:
    from safetensors.torch import load_file

    ran = train(runner, facts, folder, config)
    assert isinstance(ran.outcome, Completed), ran.outcome
    assert ran.losses[-1] == pytest.approx(alone.losses[-1], rel=TOLERANCE)
    assert isinstance(alone.outcome, Completed)
    for name, score in alone.outcome.scores.items():
        assert ran.outcome.scores[name].value == pytest.approx(score.value, rel=1e-4), name
    measured = ran.outcome.measurement
    assert {peak.rank for peak in measured.peaks} == set(range(int(config["layout.ranks"])))
    assert measured.parameters == alone.outcome.measurement.parameters
    name = "-".join(f"{key}={value}" for key, value in config.items())
    rehearsal = worker.rehearse(spec_of(facts, folder, config, name))
    for rank, predicted in rehearsal.by_rank.items():
        training = [
            peak.bytes
            for peak in measured.peaks
            if (peak.rank, peak.kind) == (rank, PeakKind.ALLOCATED) and peak.phase in TRAINING
        ]
        assert predicted <= 1.02 * max(training), (rank, rehearsal)
        # Gradients that are on their way when the next ones come, are as many as there is delay.
        most = 1.25 if config.get("layout.data") in ("zero2", "zero3") else 1.02
        assert max(training) <= most * predicted, (rank, rehearsal)
    kept = load_file(folder / name / "model.safetensors")
    single = load_file(folder / "alone" / "model.safetensors")
    assert kept.keys() == single.keys()
    for key, tensor in single.items():
        # Adam turns rounding of gradients near zero into steps of its full rate.
        assert (kept[key] - tensor).abs().mean() < 1e-4, key
        assert kept[key].shape == tensor.shape


@pytest.mark.parametrize(
    ("trouble", "kind"),
    [("killed", Crashed), ("raise", Crashed), ("allocate 700", OutOfMemory), ("hang", Crashed)],
)
def test_a_rank_that_fails_ends_its_trial(
    runner: LocalRunner, tmp_path: Path, trouble: str, kind: type[Outcome]
) -> None:
    facts = describe(runner, tmp_path, {"1": f"on 1 6 {trouble}"})
    spec = make_spec(facts, tmp_path, limit_bytes=300 * 2**20)
    spec = TrialSpec.from_json({**spec.to_json(), "config": {"layout.ranks": 2}})
    began = time.monotonic()
    runner.submit(spec)
    seen = None
    while seen is None:
        event = runner.next(timeout=120)
        assert event is not None
        if event.kind == "step" and event.data["step"] == 5:
            began = time.monotonic()
        seen = outcome_from_json(event.data) if event.kind == "outcome" else None
    assert isinstance(seen, kind), seen
    assert seen.rank == 1
    assert "rank 1" in seen.summary
    assert time.monotonic() - began < 20.0


def test_parts_of_a_trial_meet_over_a_network(
    runner: LocalRunner, facts: WorkloadFacts, folder: Path, alone: Ran
) -> None:
    """As on two nodes, each part is a group of processes that the others do not see."""
    config = {"layout.ranks": 3, "layout.data": "server"}
    spec = replace(spec_of(facts, folder, config, "parts"), probe=False)
    opens = Part(first=0, count=2, host="127.0.0.1")
    runner.submit(replace(spec, part=opens))
    losses: list[float] = []
    ends: dict[int, Outcome] = {}
    while len(ends) < 2:
        event = runner.next(timeout=120)
        assert event is not None
        if event.kind == "meeting":
            there = replace(opens, first=2, count=1, address=event.data["address"])
            runner.submit(replace(spec, number=1, part=there, log=f"{spec.log}.2"))
        elif event.kind == "step":
            losses.append(event.data["loss"])
        elif event.kind == "outcome":
            ends[event.trial] = outcome_from_json(event.data)
    end = together([ends[0], ends[1]])
    assert isinstance(end, Completed), ends
    assert {peak.rank for peak in end.measurement.peaks} == {0, 1, 2}
    assert losses[-1] == pytest.approx(alone.losses[-1], rel=TOLERANCE)
