"""What a process holds on a GPU beside its tensors, and what the screen makes of it.

These need a GPU and say so where there is none. They show that what `doctor` measures is what
trials hold, and that the simulated allocator says what the real one reserves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from autotune.cli.checks import Verdict, check_outside
from autotune.core.context import Device
from autotune.core.outcome import Completed, PeakKind, outcome_from_json
from autotune.core.units import GIB, MIB
from autotune.core.workload import Workload, WorkloadFacts
from autotune.memory.outside import CACHE, MEASURED_SPREAD, outside_of
from autotune.memory.predict import counted, estimated
from autotune.memory.rehearsal_worker import RehearsalWorker
from autotune.runners.devices import detect_devices
from autotune.runners.local import LocalRunner
from autotune.trial.spec import TrialSpec

CUDA = [device for device in detect_devices() if device.kind == "cuda"]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.training,
    pytest.mark.skipif(not CUDA, reason="NVML finds no CUDA device on this machine"),
]
CONFIGS = ({}, {"precision": "bf16"}, {"checkpointing": "full"}, {"accumulation": 8})


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    """The first GPU, measured."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE, str(tmp_path_factory.mktemp("cache")))
        check = check_outside(CUDA[0], fast=False)
        assert check.verdict is Verdict.GOOD, check.found
        yield CUDA[0]


@pytest.fixture(scope="module")
def runner() -> Iterator[LocalRunner]:
    runner = LocalRunner(slots=1)
    yield runner
    runner.close()


@pytest.fixture(scope="module")
def worker() -> Iterator[RehearsalWorker]:
    with RehearsalWorker() as worker:
        yield worker


@pytest.fixture(scope="module")
def facts(runner: LocalRunner, tmp_path_factory: pytest.TempPathFactory) -> WorkloadFacts:
    workload = Workload(objective="causal_lm", steps=10, global_batch=32, sequence_length=256)
    return runner.describe(workload, tmp_path_factory.mktemp("prepared"))


def make_spec(facts: WorkloadFacts, device: Device, folder: Path) -> TrialSpec:
    return TrialSpec(
        number=0, config={}, facts=facts, device=device, threads=4, limit_bytes=16 * GIB,
        limit_seconds=300.0, cache=str(folder / "cache"), log=str(folder / "log.txt"),
    )  # fmt: skip


def run(runner: LocalRunner, spec: TrialSpec) -> Completed:
    runner.submit(spec)
    while (event := runner.next()) is not None:
        if event.kind == "outcome":
            outcome = outcome_from_json(event.data)
            assert isinstance(outcome, Completed), outcome
            return outcome
    raise AssertionError("no outcome")


def test_what_doctor_measures_is_plausible_and_repeatable(device: Device) -> None:
    found = outside_of(device)
    assert found.source.startswith("measured")
    assert 100 * MIB < found.fixed_bytes < 2 * GIB
    assert MIB < found.workspace_bytes < 256 * MIB
    assert check_outside(device, fast=False).verdict is Verdict.GOOD
    again = outside_of(device)
    assert again.fixed_bytes == pytest.approx(found.fixed_bytes, abs=MEASURED_SPREAD)
    assert again.workspace_bytes == found.workspace_bytes


def test_trials_hold_what_doctor_measured(
    device: Device, runner: LocalRunner, facts: WorkloadFacts, tmp_path: Path
) -> None:
    measured = run(runner, make_spec(facts, device, tmp_path)).measurement
    held = measured.peak(PeakKind.DEVICE) - measured.peak(PeakKind.RESERVED)
    assert held == pytest.approx(outside_of(device).fixed_bytes, abs=3 * MEASURED_SPREAD)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_reserved_memory_is_predicted(
    device: Device, runner: LocalRunner, worker: RehearsalWorker, facts: WorkloadFacts,
    tmp_path: Path, config: dict,
) -> None:  # fmt: skip
    spec = replace(make_spec(facts, device, tmp_path), config=config)
    measured = run(runner, spec).measurement
    count = counted(spec, worker, limited=True)
    assert count.bytes == pytest.approx(measured.peak(PeakKind.RESERVED), rel=0.08)
    assert measured.footprint_bytes in estimated(spec, worker, limited=True).interval


def test_what_replays_under_a_limit_runs_under_it(
    device: Device, runner: LocalRunner, worker: RehearsalWorker, facts: WorkloadFacts,
    tmp_path: Path,
) -> None:  # fmt: skip
    spec = make_spec(facts, device, tmp_path)
    count = counted(spec, worker)
    tight = replace(spec, limit_bytes=int(1.08 * (count.bytes + count.outside.fixed_bytes)))
    assert counted(tight, worker, limited=True).fits
    assert run(runner, tight).measurement.footprint_bytes <= tight.limit_bytes
