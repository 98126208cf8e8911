"""The whole loop over real trainings: no outcome ends a search, nothing is lost, nothing leaks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from autotune.core.errors import AutotuneError, BadValue, NothingFits, UnknownName
from autotune.core.outcome import Completed, OutOfMemory
from autotune.core.record import TrialRecord
from autotune.memory.rehearsal_worker import RehearsalWorker
from autotune.memory.timeline import Timeline
from autotune.memory.trace import Scale, Trace
from autotune.runners.local import LocalRunner
from autotune.storage.run import Run
from autotune.timelines import read_timeline, shown
from autotune.trial.spec import TrialSpec
from autotune.tuner import resume, tune
from tests.contract.test_runners import is_gone
from tests.reports import trace_of

pytestmark = pytest.mark.training

OBJECTIVE = "tests.integration.troubled:Troubled"
ROOT = Path(__file__).resolve().parents[2]
SPACE = """
summary: one knob that decides the trouble, and one that decides accuracy
knobs:
  accumulation: [1, 2, 4, 8, 16, 32]
  learning_rate: [0.3, 1.0, 3.0]
"""


@pytest.fixture
def space(tmp_path: Path) -> str:
    path = tmp_path / "troubled.yaml"
    path.write_text(SPACE)
    return str(path)


class Unscreened(LocalRunner):
    """A runner whose trials nobody looks at before: what does not fit runs out of memory."""

    trains = False


def settings(space: str, results: Path | str, troubles: dict[str, str], **more: object) -> dict:
    return {
        "budget": "500MB",
        "objective": OBJECTIVE,
        "data": json.dumps(troubles),
        "space": space,
        "results": results,
        "device": "cpu",
        "jobs": 1,
        **more,
    }


def numbers(run: Run) -> list[tuple[object, ...]]:
    """Everything about the trials of a run that a seed decides."""
    return [
        (r.number, r.config, r.origin, r.outcome.scores, r.outcome.measurement.peak_bytes)
        for r in run.records
        if isinstance(r.outcome, Completed)
    ]


def drive(code: str, **arguments: object) -> subprocess.Popen[str]:
    """Start a driver of its own in another process."""
    program = f"from autotune.tuner import tune\n{code.format(arguments=repr(arguments))}"
    return subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def wait_for_trial(results: Path, name: str, number: int) -> Run:
    """Wait until a trial of a run has been started by another process."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        try:
            run = Run.open(name, results=results)
        except AutotuneError:
            time.sleep(0.2)
            continue
        if any(r.number == number for r in run.records):
            return run
        time.sleep(0.1)
    raise AssertionError(f"trial {number} did not start")


def test_a_run_that_ends_keeps_timelines_if_they_are_short_beside_it(
    space: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[TrialSpec] = []

    class Worker(RehearsalWorker):
        def trace(self, spec: TrialSpec, scale: Scale | None = None) -> Trace:
            asked.append(spec)
            return trace_of((("forward", "aten.mm", "activations", 2**20),))

    monkeypatch.setattr("autotune.tuner.RehearsalWorker", Worker)
    given = settings(space, tmp_path / "results", {})
    run = tune(**given, trials=1, name="short")
    assert asked == [], "a run of seconds has no time for it"
    monkeypatch.setattr("autotune.timelines.LEAST_SECONDS", 0.0)
    monkeypatch.setattr("autotune.tuner.LEAST_SECONDS", 0.0, raising=False)
    run = tune(**given, trials=2, name="long")
    best = shown(run.records, run.metric)
    assert [spec.number for spec in asked] == [record.number for record in best]
    assert asked[0].cache == str(run.folder / "cache")
    assert all(isinstance(read_timeline(run.folder, r.number), Timeline) for r in best)


def test_no_outcome_ends_the_search(space: str, tmp_path: Path) -> None:
    troubles = {"2": "segfault", "4": "hang", "8": "diverge", "16": "allocate 900", "32": "raise"}
    run = tune(
        **settings(space, tmp_path / "results", troubles),
        trials=6,
        overrides={"learning_rate": "1.0"},
        trial_seconds=5.0,
        name="all-troubles",
        runner=Unscreened(),
    )
    ends = {r.config.get("accumulation", 1): r.outcome.tag for r in run.records if r.outcome}
    assert ends == {
        1: "completed",
        2: "crashed",
        4: "timed-out",
        8: "diverged",
        16: "out-of-memory",
        32: "crashed",
    }
    assert run.status == "done"
    assert [r.number for r in run.front()] == [0]
    oom = next(r.outcome for r in run.records if isinstance(r.outcome, OutOfMemory))
    assert oom.needed_bytes > 900 * 2**20
    assert not trials_alive()


def trials_alive() -> list[psutil.Process]:
    """Trials of this driver: children of its fork server that lead a session of their own."""
    return [
        process
        for process in psutil.Process().children(recursive=True)
        if os.getsid(process.pid) == process.pid
    ]


def test_killed_driver_is_resumed_to_the_same_end(space: str, tmp_path: Path) -> None:
    more = {"trials": 6, "name": "run", "seed": 3, "overrides": {"accumulation": "1,2"}}
    whole = tune(**settings(space, tmp_path / "whole", {"*": "slow 0.1"}, **more))
    arguments = settings(space, str(tmp_path / "killed"), {"*": "slow 0.1"}, **more)
    driver = drive("tune(**{arguments})", **arguments)
    wait_for_trial(tmp_path / "killed", "run", 3)
    children = psutil.Process(driver.pid).children(recursive=True)
    driver.kill()
    driver.communicate()
    until = time.monotonic() + 10
    while any(not is_gone(child.pid) for child in children) and time.monotonic() < until:
        time.sleep(0.05)
    assert all(is_gone(child.pid) for child in children), "a trial outlived its driver"

    left = Run.open("run", results=tmp_path / "killed")
    assert [r.number for r in left.records if r.outcome is None] == [3]
    again = resume("run", results=tmp_path / "killed")
    assert again.status == "done"
    assert numbers(again) == numbers(whole)
    assert [r.number for r in again.front()] == [r.number for r in whole.front()]


def test_interrupt_finishes_bookkeeping_and_resume_adds(space: str, tmp_path: Path) -> None:
    more = {"trials": 6, "name": "run", "overrides": {"accumulation": "1,2"}}
    arguments = settings(space, str(tmp_path / "results"), {"*": "slow 0.1"}, **more)
    driver = drive("print(tune(**{arguments}).status)", **arguments)
    wait_for_trial(tmp_path / "results", "run", 2)
    driver.send_signal(signal.SIGINT)
    output, _ = driver.communicate(timeout=60)
    assert output.splitlines()[-1] == "interrupted", output
    stopped = Run.open("run", results=tmp_path / "results")
    assert stopped.status == "interrupted"
    finished = [r for r in stopped.records if r.outcome is not None]
    assert 2 <= len(finished) < 6
    again = resume("run", results=tmp_path / "results", trials=len(finished) + 1)
    assert len([r for r in again.records if r.outcome is not None]) == len(finished) + 1
    assert list(again.records[: len(finished)]) == finished


@pytest.mark.parametrize("jobs", [1, 2])
def test_nothing_fits_says_what_would(space: str, tmp_path: Path, jobs: int) -> None:
    with pytest.raises(NothingFits, match=r"fits 0\.5 MB") as caught:
        tune(**settings(space, tmp_path / "r", {}, budget="500kB", jobs=jobs), name="small")
    assert "the smallest configuration needs" in caught.value.context[0]
    assert "accum 32" in caught.value.context[1]
    words = str(caught.value.help).split()
    enough = words[-1]
    run = tune(**settings(space, tmp_path / "r", {}, budget=enough), name="enough", trials=2)
    assert any(r.feasible for r in run.records)
    assert Run.open("small", results=tmp_path / "r").status == "failed"


def test_side_by_side_covers_the_space_once(space: str, tmp_path: Path) -> None:
    run = tune(**settings(space, tmp_path / "r", {}, jobs=2), trials=50, sampler="random")
    configs = [r.config for r in run.records]
    assert len(configs) == len(set(configs)) == 18
    assert all(isinstance(r.outcome, Completed) for r in run.records)


def test_time_limit_ends_the_search(space: str, tmp_path: Path) -> None:
    run = tune(**settings(space, tmp_path / "r", {"*": "slow 0.02"}), trials=18, time=3.0)
    assert run.status == "done"
    assert 1 <= len(run.records) < 18


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"budget": "16"}, BadValue, "no unit"),
        ({"budget": "99TB"}, BadValue, "more than cpu has"),
        ({"sampler": "tpee"}, UnknownName, "unknown sampler 'tpee'"),
        ({"space": "defualt"}, UnknownName, "unknown space 'defualt'"),
        ({"objective": "causal-ml"}, UnknownName, "unknown objective"),
        ({"overrides": {"precison": "bf16"}}, UnknownName, "unknown knob 'precison'"),
        ({"overrides": {"accumulation": "3"}}, BadValue, "accumulation"),
        ({"trials": 0}, BadValue, "at least 1"),
        ({"jobs": 0}, BadValue, "at least 1"),
        ({"device": "tpu"}, UnknownName, "unknown device 'tpu'"),
    ],
)
def test_bad_settings_are_said_before_anything_is_kept(
    space: str, tmp_path: Path, change: dict, error: type[AutotuneError], match: str
) -> None:
    with pytest.raises(error, match=match) as caught:
        tune(**(settings(space, tmp_path / "r", {}) | change))
    assert caught.value.exit_status == 2
    assert not list((tmp_path / "r").glob("*/study.db"))


def test_python_api(space: str, tmp_path: Path) -> None:
    run = tune(**settings(space, tmp_path / "r", {}), trials=3)
    table = run.to_pandas()
    assert len(table) == 3
    record = run["1"]
    assert isinstance(record, TrialRecord)
    assert record.outcome is not None
    assert record.outcome.measurement.anatomy["weights"] > 0
