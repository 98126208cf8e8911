"""A trial again from its record: what holds, what does not, and what is said about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import autotune.repeat
from autotune.core.context import Device
from autotune.core.errors import BadValue, UsageError
from autotune.core.outcome import Completed, Outcome, OutOfMemory, Phase
from autotune.core.record import TrialRecord
from autotune.repeat import INTERVAL, repeat_trial, trial_spec
from autotune.runners.replay import ReplayRunner
from autotune.storage.run import Run
from autotune.trial.spec import TrialSpec
from tests.cli.recorded import DEVICE, NAME, record_run


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The recorded run, on the machine that it was recorded on."""
    record_run(tmp_path)
    monkeypatch.setattr(autotune.repeat, "pick_device", lambda label: DEVICE)
    monkeypatch.setattr(autotune.repeat, "library_versions", lambda: {"torch": "2.13.0"})
    return Run.open(NAME, results=tmp_path)


def replaying(run: Run, change: Callable[[TrialRecord], Outcome | None]) -> ReplayRunner:
    """A runner whose trials end as recorded, but for what `change` says."""
    records = [replace(record, outcome=change(record)) for record in run.records]
    return ReplayRunner(run.spec.facts, records)


def as_recorded(record: TrialRecord) -> Outcome | None:
    return record.outcome


def scaled(peak: float = 1.0, score: float = 0.0) -> Callable[[TrialRecord], Outcome | None]:
    """Change peaks by a factor and scores by so many standard errors."""

    def change(record: TrialRecord) -> Outcome | None:
        outcome = record.outcome
        if not isinstance(outcome, Completed):
            return outcome
        peaks = tuple(replace(p, bytes=int(p.bytes * peak)) for p in outcome.measurement.peaks)
        scores = {
            name: replace(found, value=found.value + score * (found.stderr or 0.0))
            for name, found in outcome.scores.items()
        }
        measurement = replace(outcome.measurement, peaks=peaks)
        return replace(outcome, measurement=measurement, scores=scores)

    return change


def test_what_ends_as_recorded_holds(run: Run) -> None:
    said: list[str] = []
    repeat = repeat_trial(run, 3, runner=replaying(run, as_recorded), told=said.append)
    assert repeat.holds
    assert [check.name for check in repeat.checks] == ["peak memory", "accuracy"]
    assert all(check.difference == 0.0 for check in repeat.checks)
    assert repeat.notes == ()
    assert [line.split(": ")[1] for line in said] == [
        "preparing model and data", *(phase.value for phase in Phase)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("peak", "score", "holds"),
    [
        (1.009, 0.0, [True, True]),
        (0.991, 0.0, [True, True]),
        (1.011, 0.0, [False, True]),
        (0.98, 0.0, [False, True]),
        (1.0, 0.99 * INTERVAL, [True, True]),
        (1.0, -1.01 * INTERVAL, [True, False]),
        (1.5, 3.0, [False, False]),
    ],
)
def test_numbers_may_differ_by_so_much(
    run: Run, peak: float, score: float, holds: list[bool]
) -> None:
    repeat = repeat_trial(run, 3, runner=replaying(run, scaled(peak, score)))
    assert [check.holds for check in repeat.checks] == holds
    assert repeat.holds is all(holds)


def test_another_end_does_not_hold(run: Run) -> None:
    def out_of_memory(record: TrialRecord) -> Outcome | None:
        return OutOfMemory(phase=Phase.FIRST) if record.number == 3 else record.outcome

    repeat = repeat_trial(run, 3, runner=replaying(run, out_of_memory))
    assert not repeat.ended_alike
    assert not repeat.holds
    assert repeat.checks == ()


def test_a_failure_can_be_repeated(run: Run) -> None:
    repeat = repeat_trial(run, 0, runner=replaying(run, as_recorded))
    assert repeat.holds
    assert repeat.checks == ()


def test_seeds_are_consecutive_and_only_the_first_is_a_check(run: Run) -> None:
    asked: list[int] = []

    class Seeing(ReplayRunner):
        def submit(self, spec):  # type: ignore[no-untyped-def] # as in the base
            asked.append(spec.facts.workload.seed)
            super().submit(spec)

    runner = Seeing(run.spec.facts, run.records)
    repeat = repeat_trial(run, 3, seeds=3, runner=runner)
    assert asked == [0, 1, 2]
    assert len(repeat.scores("accuracy")) == len(repeat.outcomes) == 3
    assert len(repeat.checks) == 2
    with pytest.raises(BadValue, match="at least 1"):
        repeat_trial(run, 3, seeds=0)


def test_other_surroundings_are_said(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    other = replace(DEVICE, name="Other CPU")
    monkeypatch.setattr(autotune.repeat, "pick_device", lambda label: other)
    monkeypatch.setattr(autotune.repeat, "library_versions", lambda: {"torch": "2.14.0"})
    runner = ReplayRunner(replace(run.spec.facts, data_fingerprint="other"), run.records)
    repeat = repeat_trial(run, 3, runner=runner)
    assert repeat.holds
    device, versions, data = repeat.notes
    assert "Test CPU, not Other CPU" in device
    assert "torch 2.13.0 (here 2.14.0)" in versions
    assert "0123456789ab" in data


def test_a_device_that_is_not_here_is_asked_for(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    spec = replace(run.spec, device={"kind": "cuda", "index": 7, "name": "Card"})
    with pytest.raises(UsageError, match=r"measured on cuda:7 \(Card\)") as caught:
        repeat_trial(replace(run, spec=spec), 3, runner=replaying(run, as_recorded))
    assert caught.value.exit_status == 2


def test_a_trial_is_asked_for_as_the_search_asked(run: Run, tmp_path: Path) -> None:
    record, log = run.trial(3), tmp_path / "log.txt"
    spec = trial_spec(run, record, DEVICE, run.spec.facts, log)
    assert (spec.threads, spec.limit_bytes) == (run.spec.threads, record.limit_bytes)
    assert spec.config == record.config.to_json()
    workload = replace(run.spec.facts.workload, purpose="inference")
    facts = replace(run.spec.facts, workload=workload)
    card = Device(kind="cpu", total_bytes=5)
    assert trial_spec(run, record, card, facts, log).limit_bytes == 5


def test_only_cuda_has_snapshots(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="only CUDA's caching allocator makes snapshots") as raised:
        repeat_trial(run, 3, snapshot=tmp_path / "snapshot.pickle")
    assert f"autotune report {NAME}" in raised.value.help


def test_a_snapshot_is_of_the_first_training_and_replaces_an_earlier_one(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = Device(kind="cuda", name=DEVICE.name)
    monkeypatch.setattr(autotune.repeat, "pick_device", lambda label: card)
    on_cuda = replace(run, spec=replace(run.spec, device=card.to_json()))
    path = tmp_path / "snapshot.pickle"
    path.write_text("old")
    runner = replaying(run, as_recorded)
    asked: list[TrialSpec] = []
    submit = runner.submit
    monkeypatch.setattr(runner, "submit", lambda spec: (asked.append(spec), submit(spec)))
    assert repeat_trial(on_cuda, 3, seeds=2, snapshot=path, runner=runner).ended_alike
    assert [spec.snapshot for spec in asked] == [str(path), ""]
    assert not path.exists()
