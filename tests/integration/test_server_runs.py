"""Whole runs with their study on a PostgreSQL server: every command, an outage, several at once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from autotune.core.observer import Silent
from autotune.runners import devices
from autotune.storage.query import run_query
from autotune.storage.run import Run
from autotune.tuner import resume, tune
from tests.cli.conftest import Command, autotune_says  # noqa: F401  (a fixture)
from tests.cli.recorded import DEVICE
from tests.postgres import PASSWORD, PostgresServer
from tests.replayed_run import RUN, PacedRunner, start_run

SETTINGS = {"budget": "16GB", "sampler": "random", "seed": 3, "device": "cpu"}


@pytest.fixture(autouse=True)
def _device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_cuda_devices", list)
    monkeypatch.setattr(devices, "cpu_device", lambda: DEVICE)


@pytest.fixture
def url(postgres: PostgresServer) -> str:
    return postgres.empty_database()


@pytest.fixture
def server(postgres: PostgresServer) -> Iterator[PostgresServer]:
    """The server, which runs again afterwards whatever a test does to it."""
    yield postgres
    if not postgres.runs:
        postgres.start()


def found(run: Run) -> list[tuple[object, ...]]:
    return [(r.number, r.config, r.origin, r.outcome, r.on_front) for r in run.records]


def test_every_command_works_and_none_says_the_password(
    url: str,
    tmp_path: Path,
    autotune_says: Command,  # noqa: F811  (the fixture)
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    process = start_run(0.0, *RUN, "--trials", "4", "--name", "far", "--storage", url,
                        "--results", str(tmp_path / "results"))  # fmt: skip
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    texts = [out, err]
    commands = (
        ("show", "far"),
        ("show", "far/1"),
        ("show", "far", "--failed"),
        ("show", "far", "--json"),
        ("front", "far"),
        ("front", "far", "--json"),
        ("query", "select trial, score from front"),
        ("query", "@outcomes", "--json"),
        ("report", "far", "--format", "html,md"),
        ("attach", "far"),
        ("stop", "far"),
        ("db", "show"),
        ("db", "upgrade", "--json"),
        ("show", "near"),
        ("query", "select * from nothing"),
    )
    for command in commands:
        for more in ((), ("--storage", url)):
            monkeypatch.setenv("AUTOTUNE_STORAGE", url) if not more else monkeypatch.delenv(
                "AUTOTUNE_STORAGE"
            )
            said = autotune_says(*command, *more)
            wrong = command[-1] in ("near", "select * from nothing")
            assert said.status == (2 if wrong else 0), (command, said)
            texts += [said.out, said.err]
    assert "--storage 'postgresql+psycopg://owner:***@127.0.0.1" in " ".join(out.split())
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name == "report.html" for path in files)
    texts += [path.read_text(errors="replace") for path in files]
    assert not any(PASSWORD in text for text in texts)
    spec = Run.open("far", storage=url).spec
    assert PASSWORD not in json.dumps(spec.to_json())


def test_run_on_a_server_is_that_of_a_file_and_is_resumed(url: str, tmp_path: Path) -> None:
    more = {**SETTINGS, "name": "mine", "results": tmp_path / "near"}
    near = tune(**more, trials=6, runner=PacedRunner(0.0))
    more["results"] = tmp_path / "far"
    far = tune(**more, trials=3, runner=PacedRunner(0.0), storage=url)
    assert [r.number for r in far.records] == [0, 1, 2]
    far = resume("mine", trials=6, runner=PacedRunner(0.0), storage=url, results=tmp_path / "far")
    assert far.status == "done"
    assert [r.config for r in far.records[:3]] == [r.config for r in near.records[:3]]
    assert len(far.records) == 6
    assert not list((tmp_path / "far").rglob("*.db"))


def test_server_that_is_away_for_a_while_loses_and_doubles_nothing(
    server: PostgresServer, url: str, tmp_path: Path
) -> None:
    more = {**SETTINGS, "name": "mine", "trials": 12}
    whole = tune(**more, results=tmp_path / "whole", runner=PacedRunner(0.0))

    class Watched(PacedRunner):
        """Stops the server in the middle of the search, and starts it later in the search."""

        def next(self, timeout=None):
            event = super().next(timeout)
            if self.events == 20:
                server.stop()
            elif self.events == 45:  # the search went on without it, or this would not come
                server.start()
            return event

    notes: list[str] = []
    runner = Watched(0.0)

    class Notes(Silent):
        def note(self, text: str) -> None:
            notes.append(text)

    run = tune(**more, results=tmp_path / "far", runner=runner, storage=url, observers=(Notes(),))
    assert runner.events > 45
    assert run.status == "done"
    assert found(run) == found(whole)
    away = [text for text in notes if "does not answer" in text or "answers again" in text]
    assert len(away) == 2
    assert PASSWORD not in "".join(notes)
    events = _events(url)
    assert len(events) == len(set(events)) > 12
    assert len(_mirrored(url)) == len(set(_mirrored(url))) == 12


def _events(url: str) -> list[tuple[object, ...]]:
    return run_query(url, "select trial, time, kind, data from events where trial >= 0").rows


def _mirrored(url: str) -> list[int]:
    import optuna

    storage = optuna.storages.RDBStorage(url)
    study = optuna.load_study(study_name="mine", storage=storage)
    numbers = [trial.user_attrs["autotune:number"] for trial in study.trials]
    storage.remove_session()
    storage.engine.dispose()
    return numbers


def test_several_runs_share_a_database_that_was_empty(url: str, tmp_path: Path) -> None:
    names = ("one", "two", "three")
    results = str(tmp_path / "results")
    runs = [
        start_run(
            0.01, *RUN, "--trials", "4", "--name", name, "--results", results, AUTOTUNE_STORAGE=url
        )
        for name in names
    ]
    for process in runs:
        _, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
    for name in names:
        run = Run.open(name, results=results, storage=url)
        assert run.status == "done"
        assert [record.number for record in run.records] == [0, 1, 2, 3]
