"""The command line as tests call it: in this process, in an empty folder, 80 columns wide."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from autotune.__main__ import main
from autotune.runners import devices
from tests.cli.recorded import DEVICE, record_run


@dataclass(frozen=True)
class Said:
    """What a command wrote, and its exit status."""

    out: str
    err: str
    status: int

    @property
    def document(self) -> dict[str, Any]:
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found


Command = Callable[..., Said]


@pytest.fixture(autouse=True)
def _surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder, an 80 column screen, and one CPU of which everything is known."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    monkeypatch.setenv("AUTOTUNE_RESULTS", "results")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(devices, "_cuda_devices", list)
    monkeypatch.setattr(devices, "cpu_device", lambda: DEVICE)
    monkeypatch.setattr(devices, "find_spec", lambda name: name)


@pytest.fixture
def autotune_says(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command line."""

    def call(*arguments: str) -> Said:
        capsys.readouterr()
        status = main(arguments)
        written = capsys.readouterr()
        return Said(written.out, written.err, status)

    return call


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """Folder of the recorded run."""
    return record_run(Path("results"))
