"""The page on several devices, command by command and for real: plan, estimate, search."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from autotune.__main__ import main
from autotune.storage.run import Run
from tests.unit.test_guide import fenced

pytestmark = pytest.mark.training

COMMANDS = {shlex.split(command)[1]: shlex.split(command)[1:] for command in fenced("parallel")}


@pytest.fixture(autouse=True)
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AUTOTUNE_RESULTS", str(tmp_path))
    return tmp_path


def document(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main([*arguments, "--json"]) == 0
    return dict(json.loads(capsys.readouterr().out))


def test_plan_puts_layouts_that_fit_in_order(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = document([*COMMANDS["plan"], "--top", "3"], capsys)
    layouts = found["layouts"]
    assert len(layouts) == 3
    assert all(layout["config"]["layout.ranks"] == 2 for layout in layouts)
    seconds = [layout["seconds"]["step"] for layout in layouts]
    assert seconds == sorted(seconds)
    assert all(layout["predicted_gib"] <= found["limit_gib"] for layout in layouts)
    assert all(layout["ranks_gib"] for layout in layouts)
    assert main([*COMMANDS["plan"], "--top", "1", "--to", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["config"]["layout.ranks"] == 2


def test_plan_says_when_nothing_fits_or_is_legal(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*COMMANDS["plan"][:-1], "20MB", "--set", "layout.tensor=2", "--patience", "5"]
    assert main(arguments) == 3
    assert "No layout that was tried fits" in capsys.readouterr().out
    assert main(["plan", "--devices", "7", "--device", "cpu"]) == 2
    assert "no layout of 7 devices is legal" in capsys.readouterr().err


def test_an_estimate_is_for_each_device(capsys: pytest.CaptureFixture[str]) -> None:
    alone = document(["estimate"], capsys)
    divided = document(COMMANDS["estimate"], capsys)
    assert divided["config"] == {"layout.ranks": 2, "layout.data": "zero3"}
    assert divided["micro_batch"] * 2 == alone["micro_batch"]
    assert divided["parts_gib"]["weights"] == pytest.approx(alone["parts_gib"]["weights"] / 2, 0.01)


def test_a_search_varies_layouts_and_measures_every_rank(results: Path) -> None:
    more = ["--steps", "4", "--set", "layout.ranks=2", "--set", "layout.data=ddp,zero3"]
    assert main([*COMMANDS["run"], *more, "--quiet"]) == 0
    run = Run.open(results=results)
    assert run.spec.devices == 2
    completed = [record for record in run.records if record.feasible]
    assert completed
    for record in completed:
        assert record.outcome is not None
        ranks = {peak.rank for peak in record.outcome.measurement.peaks}
        assert ranks == set(range(int(record.config.get("layout.ranks", 1))))
