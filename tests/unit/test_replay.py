"""A recording replayed: the same outcomes, on simulated time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from autotune.core.context import Device
from autotune.core.domains import Value
from autotune.core.errors import DataError
from autotune.core.outcome import Completed, Stopped, outcome_from_json
from autotune.core.workload import Workload
from autotune.runners.base import Runner
from autotune.runners.replay import ReplayRunner
from autotune.trial.spec import Event, TrialSpec
from tests.studies import ENDS, STARTED, completed, make_facts, trial

RECORDS = (
    trial(0, {}, completed(0.9, seconds=10.0)),
    trial(1, {"precision": "bf16"}, completed(0.8, seconds=4.0)),
    trial(2, {"precision": "bf16", "chunks": 8}, ENDS[2]),
    trial(3, {"chunks": 2}),
)


def make_runner(slots: int = 1) -> ReplayRunner:
    return ReplayRunner(make_facts(), RECORDS, slots=slots)


def spec(number: int, config: Mapping[str, Value], *, probe: bool = False) -> TrialSpec:
    return TrialSpec(
        number=number,
        config=config,
        facts=make_facts(),
        device=Device(kind="cpu"),
        threads=1,
        limit_bytes=10**9,
        limit_seconds=60.0,
        cache="cache",
        log="log.txt",
        probe=probe,
    )


def drain(runner: Runner) -> list[Event]:
    events = []
    while (event := runner.next()) is not None:
        events.append(event)
        assert runner.now() == event.time
    return events


def test_exact_match_ends_as_recorded(tmp_path: Path) -> None:
    runner = make_runner()
    assert runner.describe(Workload(objective="any"), tmp_path) == make_facts()
    assert runner.now() == STARTED
    runner.submit(spec(7, {"precision": "bf16"}))
    events = drain(runner)
    assert [e.data["phase"] for e in events if e.kind == "phase"] == [
        "load",
        "first",
        "steady",
        "evaluate",
    ]
    assert [e.data["step"] for e in events if e.kind == "step"] == [10, 20, 30]
    assert all("replayed_from" not in e.data for e in events)
    assert outcome_from_json(events[-1].data) == RECORDS[1].outcome
    assert [e.kind for e in events].count("outcome") == 1
    assert runner.now() == STARTED + 4.0


def test_out_of_memory_ends_in_its_phase() -> None:
    runner = make_runner()
    runner.submit(spec(0, RECORDS[2].config.to_json()))
    events = drain(runner)
    assert [e.data["phase"] for e in events if e.kind == "phase"] == ["load", "first"]
    assert outcome_from_json(events[-1].data) == ENDS[2]


@pytest.mark.parametrize("outcome", ENDS, ids=lambda outcome: outcome.summary)
def test_every_kind_of_end_is_replayed(outcome: Completed) -> None:
    runner = ReplayRunner(make_facts(), [trial(0, {}, outcome)])
    runner.submit(spec(0, {}))
    assert outcome_from_json(drain(runner)[-1].data) == outcome


@pytest.mark.parametrize(
    ("config", "source"),
    [
        ({"precision": "bf16", "chunks": 4}, 1),
        ({"precision": "bf16", "chunks": 8, "rate": 0.5}, 2),
        ({"chunks": 2}, 0),  # recorded without an outcome; 0 is one knob away
        ({"chunks": 8}, 0),  # as near to 2: the lower number counts
    ],
)
def test_unseen_configuration_ends_as_the_nearest(config: Mapping[str, Value], source: int) -> None:
    runner = make_runner()
    runner.submit(spec(9, config))
    events = drain(runner)
    assert {e.data["replayed_from"] for e in events if e.kind == "phase"} == {source}
    assert outcome_from_json(events[-1].data) == RECORDS[source].outcome


def test_slots_run_side_by_side() -> None:
    runner = make_runner(slots=2)
    runner.submit(spec(0, {}))
    runner.submit(spec(1, {"precision": "bf16"}))
    runner.submit(spec(2, {"precision": "bf16"}))
    events = drain(runner)
    assert [e.time for e in events] == sorted(e.time for e in events)
    ends = {e.trial: e.time - STARTED for e in events if e.kind == "outcome"}
    assert ends == {0: 10.0, 1: 4.0, 2: 8.0}
    first = next(e for e in events if e.trial == 2)
    assert first.time == STARTED + 4.0


def test_one_slot_runs_one_after_another() -> None:
    runner = make_runner(slots=1)
    runner.submit(spec(0, {}))
    runner.submit(spec(1, {"precision": "bf16"}))
    events = drain(runner)
    assert [e.trial for e in events] == sorted(e.trial for e in events)
    assert runner.now() == STARTED + 14.0


def test_timeout_passes_in_simulated_time() -> None:
    runner = make_runner()
    assert runner.next() is None
    assert runner.next(timeout=3.0) is None
    assert runner.now() == STARTED + 3.0
    runner.submit(spec(0, {}))
    assert runner.next(timeout=0.5) is not None
    assert runner.next(timeout=0.5) is None
    assert runner.now() == STARTED + 3.5


def test_cancelled_trial_is_stopped_where_it_was() -> None:
    runner = make_runner()
    runner.submit(spec(0, {}))
    runner.submit(spec(1, {}))
    while (event := runner.next()) is not None and event.kind != "step":
        pass
    seconds = runner.now() - STARTED
    runner.cancel(1, "not needed")
    runner.cancel(0, "enough")
    runner.cancel(99, "unknown")
    ends = {e.trial: outcome_from_json(e.data) for e in drain(runner)}
    assert ends == {
        0: Stopped(seconds=seconds, step=10, reason="enough"),
        1: Stopped(seconds=0.0, step=0, reason="not needed"),
    }


def test_probe_measures_memory_only() -> None:
    runner = make_runner()
    runner.submit(spec(0, {}, probe=True))
    outcome = outcome_from_json(drain(runner)[-1].data)
    assert isinstance(outcome, Completed)
    assert (outcome.scores, outcome.measurement.steps, outcome.seconds) == ({}, 5, 1.25)
    recorded = RECORDS[0].outcome
    assert recorded is not None
    assert outcome.measurement.peak_bytes == recorded.measurement.peak_bytes


def test_closed_runner_has_nothing_to_say() -> None:
    runner = make_runner()
    runner.submit(spec(0, {}))
    runner.close()
    runner.close()
    assert runner.next() is None


def test_empty_recording_is_said() -> None:
    with pytest.raises(DataError, match="no trial that ended"):
        ReplayRunner(make_facts(), [replace(RECORDS[0], outcome=None)])
