"""`autotune knobs check`, on a network of two layers that trains for real."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from autotune.__main__ import main

pytestmark = pytest.mark.training

OBJECTIVE = "tests.integration.troubled:Troubled"


def test_every_value_is_trained_beside_its_peer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "check.json"
    status = main([
        "knobs", "check", "accumulation", "optimizer.offload", "--objective", OBJECTIVE,
        "--device", "cpu", "--output", str(file), "--json",
    ])  # fmt: skip
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads(file.read_text())
    rows = {(row["knob"], row["value"]): row for row in document["values"]}
    trained = [row for row in rows.values() if row["outcome"] == "completed"]
    assert {row["value"] for row in trained} == {2, 4, 8, 16, 32}
    assert all(row["score"] == pytest.approx(0.0, abs=1e-5) for row in trained)  # it is exact
    assert all(row["peak_bytes"] is not None for row in trained)
    assert "CPU" in rows["optimizer.offload", "host"]["reason"]
    assert status == (1 if document["broken_promises"] else 0)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["acumulation"], "did you mean 'accumulation'"),
        (["accumulation", "--seeds", "0"], "seeds must be at least 1"),
        (["accumulation", "--output", "there.json"], "there.json exists already"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(
    typed: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("there.json").write_text("{}")
    assert main(["knobs", "check", *typed]) == 2
    assert said in capsys.readouterr().err
    assert Path("there.json").read_text() == "{}"
