"""Optuna Dashboard on a run: figures pinned, infeasible trials marked, and the study unharmed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import optuna
import pytest

from autotune.search.quiet import quiet_optuna
from tests.cli.conftest import Command
from tests.cli.recorded import NAME


def fetch(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)


def best(folder: Path) -> list[int]:
    with quiet_optuna():
        storage = optuna.storages.RDBStorage(f"sqlite:///{folder / 'study.db'}")
        study = optuna.load_study(study_name=NAME, storage=storage)
        found = sorted(trial.user_attrs["autotune:number"] for trial in study.best_trials)
    storage.remove_session()
    storage.engine.dispose()
    return found


def test_dashboard_has_our_figures_and_marks_what_is_infeasible(recorded: Path) -> None:
    pytest.importorskip("optuna_dashboard", reason="needs the extra `dashboard`")
    process = subprocess.Popen(
        [sys.executable, "-m", "autotune", "dashboard", NAME, "--port", "0", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stdout is not None
        lines = []
        while not lines or lines[-1] != "}\n":
            lines.append(process.stdout.readline())
            assert lines[-1], process.stderr and process.stderr.read()
        said = json.loads("".join(lines))
        assert said["pinned"] == ["tradeoff", "anatomy"]
        (study,) = fetch(f"{said['url']}/api/studies")["study_summaries"]
        assert study["study_name"] == NAME
        detail = fetch(f"{said['url']}/api/studies/{study['study_id']}?after=0")
    finally:
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    pinned = {plot["id"] for plot in detail["plotly_graph_objects"]}
    assert pinned == {"tradeoff", "anatomy"}
    infeasible = {
        trial["number"] for trial in detail["trials"] if any(c > 0 for c in trial["constraints"])
    }
    assert infeasible == {0, 6, 7, 8}
    assert best(recorded) == [1, 3, 4]


def test_missing_extra_and_taken_ports_are_said(
    autotune_says: Command, recorded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "optuna_dashboard", None)
        said = autotune_says("dashboard")
    assert said.status == 2
    assert "pip install 'autotune-memory[dashboard]'" in said.err
    pytest.importorskip("optuna_dashboard", reason="needs the extra `dashboard`")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        said = autotune_says("dashboard", "--port", str(taken.getsockname()[1]))
    assert said.status == 2
    assert "--port 0" in said.err


def test_dashboard_does_not_know_constraints_of_optuna_5_yet() -> None:
    serializer = pytest.importorskip("optuna_dashboard._serializer")
    with quiet_optuna():
        study = optuna.create_study()
        study.add_trial(optuna.trial.create_trial(value=1.0, constraints={"memory": 1.0}))
        shown = serializer.serialize_frozen_trial(0, study.trials[0], {})
    assert shown["constraints"] == [], (
        "optuna-dashboard reads them now: drop the second list in autotune/search/study.py"
    )
