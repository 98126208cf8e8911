"""One trial inside this process: the order of its stages, and how its ends become outcomes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autotune.core.context import Device
from autotune.core.outcome import Completed, Crashed, Diverged, Phase
from autotune.core.workload import Workload
from autotune.runners.devices import cpu_device
from autotune.trial import worker
from autotune.trial.lifecycle import run_trial
from autotune.trial.measure import MEASURED_STEPS, CpuMeter
from autotune.trial.progress import Progress
from autotune.trial.spec import TrialSpec
from autotune.trial.training import PROBE_STEPS, LossDiverged
from tests.integration.troubled import Troubled

OBJECTIVE = "tests.integration.troubled:Troubled"


class Said:
    """Collects what a trial reports."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Mapping[str, Any]]] = []

    def __call__(self, kind: str, data: Mapping[str, Any]) -> None:
        self.events.append((kind, data))

    send = __call__


def make_spec(folder: Path, troubles: Mapping[str, str] | None = None, **change: Any) -> TrialSpec:
    workload = Workload(objective=OBJECTIVE, data=json.dumps(troubles or {}))
    spec = TrialSpec(
        number=0,
        config={},
        facts=Troubled(workload, folder).describe(),
        device=cpu_device(),
        threads=1,
        limit_bytes=2**34,
        limit_seconds=60,
        cache=str(folder),
        log=str(folder / "log.txt"),
    )
    return replace(spec, **change)


def run(spec: TrialSpec) -> tuple[Completed, Said]:
    said = Said()
    return run_trial(spec, Progress(meter=CpuMeter(), report=said)), said


def test_phases_come_in_order_and_steps_are_counted(tmp_path: Path) -> None:
    completed, said = run(make_spec(tmp_path))
    phases = [data["phase"] for kind, data in said.events if kind == "phase"]
    assert phases == [str(phase) for phase in Phase]
    steps = [data["step"] for kind, data in said.events if kind == "step"]
    assert steps == list(range(1, 9))
    assert completed.measurement.steps == 8
    assert completed.measurement.step_seconds > 0
    assert completed.measurement.throughput > 0
    assert 0 < completed.measurement.trained_parameters <= completed.measurement.parameters


def test_a_probe_ends_after_the_measured_steps(tmp_path: Path) -> None:
    completed, said = run(make_spec(tmp_path, probe=True))
    assert completed.measurement.steps == PROBE_STEPS == MEASURED_STEPS + 1
    assert "evaluate" not in [data.get("phase") for _, data in said.events]
    assert sum(completed.measurement.anatomy.values()) > 0


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_short_trainings_measure_what_they_can(tmp_path: Path, steps: int) -> None:
    spec = make_spec(tmp_path)
    workload = replace(spec.facts.workload, steps=steps)
    completed, _ = run(replace(spec, facts=replace(spec.facts, workload=workload)))
    assert completed.measurement.steps == steps
    assert completed.measurement.peak_bytes > 0
    assert completed.scores


def test_accumulation_gives_the_same_training(tmp_path: Path) -> None:
    whole, _ = run(make_spec(tmp_path))
    pieces, _ = run(make_spec(tmp_path, config={"accumulation": 8}))
    assert pieces.scores["error"].value == pytest.approx(whole.scores["error"].value, rel=1e-5)


def test_a_loss_that_is_not_finite_raises(tmp_path: Path) -> None:
    with pytest.raises(LossDiverged, match="step 0"):
        run(make_spec(tmp_path, {"1": "diverge"}))


def test_ends_become_outcomes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from autotune.trial import limits

    held: list[int] = []
    monkeypatch.setattr(limits, "enforce", lambda limit, device, context: held.append(limit))
    monkeypatch.setattr(limits, "lift", lambda: None)
    said: Any = Said()
    done = worker._trial(make_spec(tmp_path), said)
    assert isinstance(done, Completed)
    assert done.seconds > 0
    diverged = worker._trial(make_spec(tmp_path, {"1": "diverge"}), said)
    assert isinstance(diverged, Diverged)
    crashed = worker._trial(make_spec(tmp_path, {"1": "raise"}), said)
    assert isinstance(crashed, Crashed)
    assert crashed.error == "ValueError: a bug in the user's code"
    assert crashed.measurement.peaks
    assert held == [2**34] * 3


def test_limits_are_set_as_the_device_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    import torch

    from autotune.trial import limits

    calls: list[Any] = []
    monkeypatch.setattr(resource, "setrlimit", lambda kind, values: calls.append((kind, values)))
    limits.enforce(10**9, Device(kind="cpu"), 0)
    (kind, (soft, _)) = calls.pop()
    assert kind == resource.RLIMIT_DATA
    assert soft >= 10**9
    shares: list[float] = []
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda share, index: shares.append(share)
    )
    properties = SimpleNamespace(total_memory=16 * 10**9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    limits.enforce(8 * 10**9, Device(kind="cuda"), 10**9)
    assert shares == [pytest.approx(7 / 16)]
    limits.lift()
    assert calls
