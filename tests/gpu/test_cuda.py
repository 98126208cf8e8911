"""Trials on a CUDA device: the same lifecycle, the allocator's counters, a budget that is real.

These need a GPU and say so where there is none. They are the contract of `trial/measure.py` and
`trial/limits.py` for CUDA, which no CPU run can show.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from autotune.core.context import Device
from autotune.core.outcome import (
    Completed,
    Outcome,
    OutOfMemory,
    PeakKind,
    Phase,
    outcome_from_json,
)
from autotune.core.workload import Workload, WorkloadFacts
from autotune.repeat import repeat_trial
from autotune.runners.devices import detect_devices
from autotune.runners.local import LocalRunner
from autotune.storage.places import snapshot_path
from autotune.trial.spec import TrialSpec
from autotune.tuner import tune

CUDA = [device for device in detect_devices() if device.kind == "cuda"]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.training,
    pytest.mark.skipif(not CUDA, reason="NVML finds no CUDA device on this machine"),
]
GIB = 2**30


@pytest.fixture(scope="module")
def device() -> Device:
    return CUDA[0]


@pytest.fixture(scope="module")
def runner() -> Iterator[LocalRunner]:
    runner = LocalRunner(slots=1)
    yield runner
    runner.close()


@pytest.fixture(scope="module")
def facts(runner: LocalRunner, tmp_path_factory: pytest.TempPathFactory) -> WorkloadFacts:
    cache = tmp_path_factory.mktemp("cache")
    workload = Workload(objective="causal_lm", steps=10, global_batch=32, sequence_length=128)
    return runner.describe(workload, cache)


def outcome(
    runner: LocalRunner, facts: WorkloadFacts, device: Device, folder: Path, **change: object
) -> Outcome:
    spec = TrialSpec(
        number=0,
        config={},
        facts=facts,
        device=device,
        threads=4,
        limit_bytes=8 * GIB,
        limit_seconds=300,
        cache=str(folder / "cache"),
        log=str(folder / "log.txt"),
    )
    runner.submit(replace(spec, **change))  # type: ignore[arg-type]  # fields by name
    while (event := runner.next()) is not None:
        if event.kind == "outcome":
            return outcome_from_json(event.data)
    raise AssertionError("no outcome")


def test_counters_are_ordered_and_agree(
    runner: LocalRunner, facts: WorkloadFacts, device: Device, tmp_path: Path
) -> None:
    ended = outcome(runner, facts, device, tmp_path)
    assert isinstance(ended, Completed), ended
    for phase in Phase:
        allocated = ended.measurement.peak(PeakKind.ALLOCATED, phase)
        reserved = ended.measurement.peak(PeakKind.RESERVED, phase)
        process = ended.measurement.peak(PeakKind.DEVICE, phase)
        assert 0 < allocated <= reserved < process, phase
    parts = ended.measurement.anatomy
    peak = ended.measurement.peak(PeakKind.ALLOCATED, Phase.STEADY)
    assert sum(parts.values()) == pytest.approx(peak, rel=0.05)


def test_is_repeatable(
    runner: LocalRunner, facts: WorkloadFacts, device: Device, tmp_path: Path
) -> None:
    peaks = [outcome(runner, facts, device, tmp_path).measurement.peak_bytes for _ in range(2)]
    assert peaks[0] == pytest.approx(peaks[1], rel=0.01)


def test_the_cap_is_real(
    runner: LocalRunner, facts: WorkloadFacts, device: Device, tmp_path: Path
) -> None:
    free = outcome(runner, facts, device, tmp_path)
    limit = int(free.measurement.footprint_bytes * 0.8)
    ended = outcome(runner, facts, device, tmp_path, limit_bytes=limit)
    assert isinstance(ended, OutOfMemory), ended
    assert ended.needed_bytes >= limit


@pytest.mark.parametrize(
    "config",
    [
        {"precision": "bf16"},
        {"checkpointing": "full"},
        {"accumulation": 8},
        {"loss_chunks": 16},
        {"optimizer": "sgd"},
    ],
    ids=str,
)
def test_knobs_lower_the_peak(
    runner: LocalRunner, facts: WorkloadFacts, device: Device, tmp_path: Path, config: dict
) -> None:
    base = outcome(runner, facts, device, tmp_path).measurement
    lean = outcome(runner, facts, device, tmp_path, config=config).measurement
    assert lean.peak(PeakKind.ALLOCATED) < base.peak(PeakKind.ALLOCATED)


def test_a_snapshot_of_one_step_is_what_memory_viz_reads(
    runner: LocalRunner, facts: WorkloadFacts, device: Device, tmp_path: Path
) -> None:
    path = tmp_path / "trials" / "0" / "snapshot.pickle"
    plain = outcome(runner, facts, device, tmp_path)
    ended = outcome(runner, facts, device, tmp_path, snapshot=str(path))
    assert isinstance(ended, Completed), ended
    assert ended.measurement.peak_bytes == pytest.approx(plain.measurement.peak_bytes, rel=0.01)
    kept = pickle.loads(path.read_bytes())
    assert kept["segments"]
    actions = [event["action"] for event in kept["device_traces"][device.index]]
    assert "alloc" in actions
    assert "free_completed" in actions
    assert any(event["frames"] for event in kept["device_traces"][device.index])
    named = {
        frame["name"] for event in kept["device_traces"][device.index] for frame in event["frames"]
    }
    assert "one_step" in named, "the stacks lead to the training step"


def test_replay_keeps_a_snapshot_beside_the_log(tmp_path: Path) -> None:
    run = tune(budget="16GB", trials=1, results=tmp_path / "results")
    path = snapshot_path(run.folder, 0)
    assert repeat_trial(run, 0, snapshot=path).ended_alike
    assert path.stat().st_size > 1000


def test_the_main_job_uses_the_gpu(tmp_path: Path) -> None:
    run = tune(budget="16GB", trials=6, results=tmp_path / "results")
    assert run.spec.device["kind"] == "cuda"
    assert run.front()
