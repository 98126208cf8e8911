"""A run is followed and ended from other processes, through its database."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from autotune.cli import attach, stop
from autotune.core.errors import AutotuneError, StorageError
from autotune.core.outcome import Stopped
from autotune.runners import devices
from autotune.storage.run import Run
from autotune.tuner import resume
from tests.cli.conftest import Command, autotune_says  # noqa: F401  (a fixture)
from tests.cli.recorded import DEVICE, record_run
from tests.postgres import PostgresServer
from tests.replayed_run import RUN, PacedRunner, start_run

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def storage(postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """A server for runs, for this process and those that it starts."""
    url = postgres.empty_database()
    monkeypatch.setenv("AUTOTUNE_STORAGE", url)
    return url


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Start runs in processes of their own, of which none outlives the test."""
    monkeypatch.setenv("AUTOTUNE_RESULTS", str(tmp_path / "results"))
    monkeypatch.chdir(tmp_path)
    started: list[subprocess.Popen[str]] = []

    def call(pace: float, *arguments: str) -> subprocess.Popen[str]:
        started.append(start_run(pace, *RUN, "--name", "mine", *arguments))
        return started[-1]

    yield call
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def wait_for_trials(count: int, storage: str | None = None) -> Run:
    until = time.monotonic() + 120
    while time.monotonic() < until:
        try:
            run = Run.open("mine", results="results", storage=storage)
        except AutotuneError:
            time.sleep(0.2)
            continue
        if len(run.records) >= count:
            return run
        time.sleep(0.1)
    raise AssertionError(f"{count} trials did not start")


def lines_of(text: str) -> list[str]:
    """Lines of a run but for its elapsed time, which who watches knows a heartbeat later."""
    return [line.partition(" elapsed=")[0] for line in text.splitlines()]


def test_followers_see_what_the_run_shows(
    start: Start,
    autotune_says: Command,  # noqa: F811  (the fixture)
) -> None:
    run = start(0.05, "--trials", "12")
    wait_for_trials(2)
    followed = autotune_says("attach", "mine")
    out, err = run.communicate(timeout=120)
    assert run.returncode == 0, err
    assert followed.status == 0
    assert lines_of(followed.err) == lines_of(err)
    assert followed.out == out
    machine = autotune_says("attach", "mine", "--json")
    assert (machine.status, machine.err) == (0, "")
    documents = [json.loads(line) for line in machine.out.splitlines()]
    kinds = [document["event"] for document in documents]
    assert kinds[0] == "run"
    assert documents[-1] == {"schema": 1, "event": "ended", "status": "done"}
    assert kinds.count("trial-started") == 12
    ends = [document for document in documents if document["event"] == "trial-ended"]
    assert sorted(document["trial"]["trial"] for document in ends) == list(range(12))
    found = Run.open("mine", results="results")
    assert ends[-1]["front"] == [record.number for record in found.front()]


def test_stopped_run_ends_its_trials_and_can_be_resumed(
    start: Start,
    storage: str,
    autotune_says: Command,  # noqa: F811  (the fixture)
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = start(0.1, "--trials", "500", "--jobs", "2")
    wait_for_trials(3, storage)
    said = autotune_says("stop", "mine", "--json")
    assert said.status == 0
    assert "Stopping mine" in said.err
    assert said.document["run"]["status"] == "interrupted"
    _, err = run.communicate(timeout=60)
    assert run.returncode == 130, err
    assert "note     stopped by " in err
    assert "`autotune resume mine` continues" in err
    found = Run.open("mine", results="results", storage=storage)
    assert found.status == "interrupted"
    stopped = [r.outcome for r in found.records if isinstance(r.outcome, Stopped)]
    assert said.document["counts"]["stopped"] == len(stopped) >= 1
    assert all(outcome.reason.startswith("stopped by ") for outcome in stopped)
    assert all(record.outcome is not None for record in found.records)
    assert autotune_says("attach", "mine", "-q").status == 130
    monkeypatch.setattr(devices, "_cuda_devices", list)
    monkeypatch.setattr(devices, "cpu_device", lambda: DEVICE)
    most = len(found.records) + 2
    again = resume("mine", trials=most, results="results", storage=storage, runner=PacedRunner(0.0))
    assert (again.status, len(again.records)) == ("done", most)
    said = autotune_says("stop", "mine")
    assert (said.status, said.err) == (0, "")
    assert "mine was not running: it is " in said.out


def test_detaching_leaves_the_run_alone(
    start: Start,
    autotune_says: Command,  # noqa: F811  (the fixture)
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = start(0.1, "--trials", "500")
    wait_for_trials(2)
    looks = iter(range(3))

    def pressed(seconds: float) -> None:
        if next(looks) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(attach.time, "sleep", pressed)
    said = autotune_says("attach", "mine")
    assert said.status == 130
    assert said.err.startswith("autotune  budget=")
    assert "Detached; mine goes on: autotune attach mine" in said.err
    assert run.poll() is None
    run.kill()
    run.communicate()
    said = autotune_says("attach", "mine")
    assert said.status == 130
    assert "Interrupted, and nothing is lost" in said.err


def test_driver_that_does_not_answer_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = record_run(tmp_path, "mine", status="running")
    monkeypatch.setattr(stop, "WAIT_SECONDS", -1.0)
    with pytest.raises(StorageError, match="the request stands"):
        stop.stop(str(folder))
