"""Trials whose configuration sets environment variables start in an interpreter of their own."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from autotune.core.outcome import Completed, Crashed, Stopped, outcome_from_json
from autotune.core.workload import Workload
from autotune.runners.local import LocalRunner
from autotune.trial.spec import TrialSpec
from tests.contract.test_runners import OBJECTIVE, make_spec

pytestmark = pytest.mark.training


@pytest.fixture
def runner() -> Iterator[LocalRunner]:
    runner = LocalRunner()
    yield runner
    runner.close()


def spec_of(runner: LocalRunner, folder: Path, trouble: str, config: dict) -> TrialSpec:
    workload = Workload(objective=OBJECTIVE, data=json.dumps({"*": trouble}))
    facts = runner.describe(workload, folder / "cache")
    return replace(make_spec(facts, folder, number=0, accumulation=1), config=config)


def outcome_of(runner: LocalRunner):
    while (event := runner.next(timeout=120)) is not None:
        if event.kind == "outcome":
            return outcome_from_json(event.data)
    raise AssertionError("no outcome")


@pytest.mark.parametrize(
    ("config", "seen"), [({"allocator": "expandable"}, "expandable_segments:True"), ({}, None)]
)
def test_variables_are_there_before_torch_is(
    runner: LocalRunner, tmp_path: Path, config: dict, seen: str | None
) -> None:
    told = tmp_path / "environment.json"
    runner.submit(spec_of(runner, tmp_path, f"environment {told}", config))
    outcome = outcome_of(runner)
    assert isinstance(outcome, Completed), outcome
    assert outcome.scores["error"].n == 2
    assert json.loads(told.read_text())["PYTORCH_ALLOC_CONF"] == seen


def test_a_fresh_interpreter_fails_like_any_trial(runner: LocalRunner, tmp_path: Path) -> None:
    runner.submit(spec_of(runner, tmp_path, "raise", {"allocator": "async"}))
    outcome = outcome_of(runner)
    assert isinstance(outcome, Crashed)
    assert "a bug in the user's code" in outcome.error


def test_a_fresh_interpreter_is_killed_like_any_trial(runner: LocalRunner, tmp_path: Path) -> None:
    spec = spec_of(runner, tmp_path, "hang", {"allocator": "expandable"})
    runner.submit(spec)
    child = runner._running[0].child.process.pid
    while (event := runner.next(timeout=120)) is not None and event.data.get("phase") != "first":
        pass
    assert "autotune.trial.worker" in " ".join(psutil.Process(child).cmdline())
    runner.cancel(0, "enough")
    assert isinstance(outcome_of(runner), Stopped)
    deadline = time.monotonic() + 10
    while psutil.pid_exists(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not psutil.pid_exists(child)
