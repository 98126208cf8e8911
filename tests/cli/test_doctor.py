"""`doctor` on machines that lack something."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from syrupy.assertion import SnapshotAssertion

from autotune.cli import checks
from autotune.cli.checks import Check, Verdict
from autotune.core.context import Device
from tests.cli.conftest import Command
from tests.cli.recorded import DEVICE


def test_screen_and_exit_status(
    autotune_says: Command, monkeypatch: pytest.MonkeyPatch, snapshot: SnapshotAssertion
) -> None:
    found = [
        Check(Verdict.GOOD, "device", "cuda:0 NVIDIA A10G, 22.30 GiB"),
        Check(Verdict.WARNING, "peft", "not installed: pip install 'autotune-memory[peft]'"),
        Check(Verdict.PROBLEM, "results", "/mnt cannot be written: name another folder"),
    ]
    monkeypatch.setattr("autotune.cli.doctor.machine_checks", lambda results, fast: found)
    said = autotune_says("doctor")
    assert said.status == 4
    assert said.out == snapshot
    assert autotune_says("doctor", "--json").document["problems"] == 1
    found.pop()
    assert autotune_says("doctor").status == 0


def test_this_machine(autotune_says: Command) -> None:
    said = autotune_says("doctor", "--fast")
    assert said.status == 0
    assert "Test CPU" in said.out
    assert "not started (--fast)" in said.out


def test_torch_that_does_not_start_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_TORCH", "import sys; sys.exit('ImportError: libcudart.so')")
    check = checks.check_torch(fast=False)
    assert check.verdict is Verdict.PROBLEM
    assert check.found == "does not start: ImportError: libcudart.so"


def test_torch_that_hangs_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(command: list[str], **options: object) -> None:
        raise subprocess.TimeoutExpired(command, 1.0)

    monkeypatch.setattr(subprocess, "run", hang)
    assert checks.check_torch(fast=False).verdict is Verdict.PROBLEM


def test_results_below_a_file_are_a_problem() -> None:
    Path("file").write_text("")
    check = checks.check_results(Path("file/results"))
    assert check.verdict is Verdict.PROBLEM
    assert "--results DIR" in check.found


def test_full_disk_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "LEAST_DISK", 2**80)
    assert checks.check_results(Path("results")).verdict is Verdict.PROBLEM


def test_missing_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = checks.check_optional()
    assert {check.verdict for check in found} == {Verdict.WARNING}
    assert all("pip install 'autotune-memory[" in check.found for check in found)


def test_device_without_bf16_or_memory_is_a_warning() -> None:
    old = Device(
        kind="cuda", name="GTX", total_bytes=8 * 2**30, free_bytes=2**20, capability=(6, 1)
    )
    assert checks.check_precision(old).verdict is Verdict.WARNING
    assert checks.check_device(old).verdict is Verdict.WARNING
    assert "compute 6.1" in checks.check_device(old).found
    assert checks.check_device(DEVICE).verdict is Verdict.GOOD
    assert checks.check_knobs(DEVICE).name == "knobs"


CARD = Device(kind="cuda", name="Card", total_bytes=16 * 2**30, capability=(8, 6))


@pytest.mark.parametrize(
    ("code", "out", "err", "verdict", "said"),
    [
        (0, '{"context_bytes": 536870912, "workspace_bytes": 2097152}', "", "good", "0.500 GiB"),
        (1, "", "RuntimeError: no driver", "warning", "cannot be measured: RuntimeError: no driv"),
        (3, "", "", "warning", "cannot be measured: exit code 3"),
    ],
)
def test_the_context_of_a_card_is_measured_and_kept(
    code: int, out: str, err: str, verdict: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOTUNE_CACHE", "cache")
    commands: list[list[str]] = []

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, code, out, err)

    assert "assumed" in checks.check_outside(CARD, fast=True).found
    monkeypatch.setattr(subprocess, "run", run)
    check = checks.check_outside(CARD, fast=False)
    assert (check.verdict.value, commands[0][-1]) == (verdict, "cuda:0")
    assert said in check.found
    known = checks.check_outside(CARD, fast=True).found
    assert known.startswith("0.500 GiB, measured") == (code == 0)


def test_a_cache_that_cannot_be_written_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("file").write_text("")
    monkeypatch.setenv("AUTOTUNE_CACHE", "file/cache")
    done = subprocess.CompletedProcess([], 0, '{"context_bytes": 1, "workspace_bytes": 0}', "")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    check = checks.check_outside(CARD, fast=False)
    assert check.verdict is Verdict.WARNING
    assert "cannot be kept" in check.found


def test_a_driver_that_hangs_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(command: list[str], **options: object) -> None:
        raise subprocess.TimeoutExpired(command, 1.0)

    monkeypatch.setattr(subprocess, "run", hang)
    assert checks.check_outside(CARD, fast=False).verdict is Verdict.WARNING
