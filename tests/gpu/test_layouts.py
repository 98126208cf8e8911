"""Layouts over NCCL: the losses of one device, every rank measured, none above its budget."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from autotune.core.domains import Value
from autotune.core.outcome import Completed, PeakKind, outcome_from_json
from autotune.core.workload import Workload, WorkloadFacts
from autotune.runners.devices import detect_devices
from autotune.runners.local import LocalRunner
from autotune.trial.spec import TrialSpec
from tests.contract.test_layouts import LAYOUTS

CUDA = [device for device in detect_devices() if device.kind == "cuda"]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.training,
    pytest.mark.skipif(len(CUDA) < 2, reason="NVML finds fewer than two CUDA devices here"),
]
FITTING = [layout for layout in LAYOUTS if int(layout["layout.ranks"]) <= len(CUDA)]


@pytest.fixture(scope="module")
def runner() -> Iterator[LocalRunner]:
    runner = LocalRunner(slots=1)
    yield runner
    runner.close()


@pytest.fixture(scope="module")
def facts(runner: LocalRunner, tmp_path_factory: pytest.TempPathFactory) -> WorkloadFacts:
    workload = Workload(objective="causal_lm", steps=6, global_batch=8, sequence_length=32)
    return runner.describe(workload, tmp_path_factory.mktemp("facts") / "cache")


def losses(
    runner: LocalRunner, facts: WorkloadFacts, folder: Path, config: Mapping[str, Value]
) -> tuple[list[float], Completed]:
    spec = TrialSpec(
        number=0, config=config, facts=facts, device=replace(CUDA[0], index=0), threads=4,
        limit_bytes=4 * 2**30, limit_seconds=300.0, cache=str(folder / "cache"),
        log=str(folder / "log.txt"),
    )  # fmt: skip
    runner.submit(spec)
    found: list[float] = []
    while (event := runner.next(timeout=300)) is not None:
        if event.kind == "step":
            found.append(event.data["loss"])
        elif event.kind == "outcome":
            outcome = outcome_from_json(event.data)
            assert isinstance(outcome, Completed), outcome
            return found, outcome
    raise AssertionError("no outcome")


@pytest.mark.parametrize("config", FITTING, ids=lambda c: "-".join(map(str, c.values())))
def test_a_layout_trains_as_one_device_does(
    config: Mapping[str, Value], runner: LocalRunner, facts: WorkloadFacts, tmp_path: Path
) -> None:
    alone, _ = losses(runner, facts, tmp_path, {})
    together, outcome = losses(runner, facts, tmp_path, config)
    assert together[-1] == pytest.approx(alone[-1], rel=1e-3)  # kernels add in another order
    device = {p.rank for p in outcome.measurement.peaks if p.kind is PeakKind.DEVICE}
    assert device == set(range(int(config["layout.ranks"])))
