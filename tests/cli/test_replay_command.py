"""`autotune replay` and `run --verify`, against recorded outcomes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import autotune.cli.replay
import autotune.repeat
import autotune.tuner
from autotune.core.outcome import Completed
from autotune.plan import Settings
from autotune.repeat import Repeat, repeat_trial
from autotune.runners.replay import ReplayRunner
from autotune.storage.places import snapshot_path
from autotune.storage.run import Run
from tests.cli.conftest import Command
from tests.cli.recorded import DEVICE, NAME


@pytest.fixture
def replayed(recorded: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Let trials end as in the recorded run."""
    run = Run.open(NAME, results="results")
    monkeypatch.setattr(autotune.repeat, "local_runner", lambda _: runner_of(run))
    monkeypatch.setattr(autotune.tuner, "local_runner", lambda _: runner_of(run))
    monkeypatch.setattr(autotune.repeat, "library_versions", lambda: {"torch": "2.13.0"})
    return run


def runner_of(run: Run, peak: float = 1.0) -> ReplayRunner:
    """A runner whose peaks are the recorded ones times a factor."""
    records = []
    for record in run.records:
        outcome = record.outcome
        if isinstance(outcome, Completed):
            measured = outcome.measurement
            peaks = tuple(replace(p, bytes=int(p.bytes * peak)) for p in measured.peaks)
            outcome = replace(outcome, measurement=replace(measured, peaks=peaks))
        records.append(replace(record, outcome=outcome))
    return ReplayRunner(run.spec.facts, records)


def test_numbers_that_hold(autotune_says: Command, replayed: Run) -> None:
    said = autotune_says("replay", f"{NAME}/3", "--seeds", "2")
    assert said.status == 0
    assert f"The numbers of {NAME}/3 hold." in said.out
    assert "Over 2 seeds, accuracy is 0.912" in said.out
    assert "preparing model and data" in said.err
    assert max(map(len, said.out.splitlines())) <= 80
    assert autotune_says("replay", f"{NAME}/3", "--quiet").err == ""


def test_numbers_that_do_not_hold(
    autotune_says: Command, replayed: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autotune.repeat, "local_runner", lambda _: runner_of(replayed, 1.05))
    said = autotune_says("replay", f"{NAME}/3")
    assert said.status == 5
    assert f"peak memory of {NAME}/3 did not come out again." in said.out
    document = autotune_says("replay", f"{NAME}/3", "--json").document
    assert document["holds"] is False
    assert [check["holds"] for check in document["checks"]] == [False, True]
    assert document["checks"][0]["difference"] == pytest.approx(0.05 * 8.1, rel=1e-6)


def test_surroundings_that_differ_are_said(
    autotune_says: Command, replayed: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autotune.repeat, "library_versions", dict)
    said = autotune_says("replay", f"{NAME}/3")
    assert "recorded with torch 2.13.0 (here missing)" in " ".join(said.out.split())
    assert said.status == 0


def test_a_failure_that_fails_again(autotune_says: Command, replayed: Run) -> None:
    said = autotune_says("replay", f"{NAME}/0")
    assert said.status == 0
    assert "ended as recorded: out of memory in first, step 0" in said.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((NAME,), f"which trial of {NAME}?"),
        ((f"{NAME}/99",), "no trial '99'"),
        ((f"{NAME}/3", "--seeds", "0"), "--seeds must be at least 1"),
    ],
)
def test_mistakes(
    arguments: tuple[str, ...], message: str, autotune_says: Command, replayed: Run
) -> None:
    said = autotune_says("replay", *arguments)
    assert said.status == 2
    assert message in said.err
    assert said.out == ""


@pytest.mark.parametrize(("peak", "status"), [(1.0, 0), (1.05, 5)])
def test_run_verifies_its_picks(
    peak: float,
    status: int,
    autotune_says: Command,
    replayed: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(autotune.repeat, "local_runner", lambda _: runner_of(replayed, peak))
    budget = ("run", "--budget", "16GB", "--trials", "4", "--verify", "--quiet")
    said = autotune_says(*budget, "--name", "verified", "--json")
    assert said.status == status
    document = said.document
    picks = {number for number in document["picks"].values() if number is not None}
    found = {trial["trial"]: trial["holds"] for trial in document["replayed"]}
    assert set(found) == {f"verified/{number}" for number in picks}
    assert set(found.values()) == {peak == 1.0}
    screen = autotune_says(*budget, "--name", "again")
    assert ("hold." in screen.out) is (peak == 1.0)


def test_the_recorded_device_is_used(
    autotune_says: Command, replayed: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Settings] = []

    def runner(settings: Settings) -> ReplayRunner:
        asked.append(settings)
        return runner_of(replayed)

    monkeypatch.setattr(autotune.repeat, "local_runner", runner)
    autotune_says("replay", f"{NAME}/3")
    assert [(settings.device, settings.jobs) for settings in asked] == [(DEVICE.label, 1)]


def test_a_cpu_has_no_snapshot_and_show_says_where_one_lies(
    autotune_says: Command, replayed: Run
) -> None:
    said = autotune_says("replay", f"{NAME}/3", "--snapshot")
    assert said.status == 2
    assert "only CUDA's caching allocator makes snapshots" in " ".join(said.err.split())
    assert autotune_says("show", f"{NAME}/3", "--json").document["trial"]["snapshot"] is None
    path = snapshot_path(replayed.folder, 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"torch's own")
    text = autotune_says("show", f"{NAME}/3").out
    assert f"torch's own snapshot of one step: {path}" in text
    assert "pytorch.org/memory_viz" in text
    document = autotune_says("show", f"{NAME}/3", "--json").document
    assert document["trial"]["snapshot"] == str(path)


def test_replay_says_what_became_of_the_snapshot(
    autotune_says: Command, replayed: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def repeat(run: Run, number: int, *, snapshot: Path, **more: object) -> Repeat:
        if leaves:
            snapshot.parent.mkdir(parents=True, exist_ok=True)
            snapshot.write_bytes(b"torch's own")
        return repeat_trial(run, number)

    monkeypatch.setattr(autotune.cli.replay, "repeat_trial", repeat)
    leaves = False
    text = " ".join(autotune_says("replay", f"{NAME}/3", "--snapshot").out.split())
    assert "There is no snapshot: the trial ended before its first steady step." in text
    leaves = True
    document = autotune_says("replay", f"{NAME}/3", "--snapshot", "--json").document
    assert document["snapshot"] == str(snapshot_path(replayed.folder, 3))
