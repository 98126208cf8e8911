"""What a study database owes its writer and its readers, whatever the database."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from autotune.core.domains import Value
from autotune.core.errors import StorageError, UnknownName
from autotune.core.outcome import OutOfMemory, Phase
from autotune.core.record import TrialRecord
from autotune.core.seeds import Repetition
from autotune.storage.driver import Driver
from autotune.storage.query import run_query
from autotune.storage.reader import Reader
from autotune.storage.store import Store
from autotune.trial.spec import Event
from tests.postgres import PostgresServer
from tests.studies import ENDS, KNOBS, METRIC, STARTED, completed, make_spec, trial


class Clock:
    """A clock that only the test moves."""

    def __init__(self) -> None:
        self.time = STARTED

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'study.db'}"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.empty_database()


@pytest.fixture
def store(url: str, clock: Clock) -> Iterator[Store]:
    with Store.open(url, clock=clock) as store:
        store.start_run(make_spec())
        yield store


def put(store: Store, record: TrialRecord, run: str = "first") -> None:
    store.add_trial(run, replace(record, outcome=None), KNOBS)
    if record.outcome is not None:
        store.finish_trial(run, record, METRIC)


def test_every_outcome_comes_back_as_it_was(store: Store, url: str) -> None:
    configs: list[dict[str, Value]] = [
        {"precision": "bf16"},
        {"chunks": 16},
        {"rate": 0.1 + 0.2},
        {},
    ]
    records = [trial(n, configs[n % 4], end) for n, end in enumerate(ENDS)]
    records.append(trial(len(ENDS), {"chunks": 4, "rate": 1e-5}))
    for record in records:
        put(store, record)
    assert store.records("first") == records
    with Reader.open_read_only(url) as reader:
        assert reader.records("first") == records


def test_spec_comes_back_as_it_was(store: Store) -> None:
    assert store.spec("first") == make_spec()
    assert store.spec("first").fingerprint == make_spec().fingerprint


def test_database_outlives_its_writer(store: Store, url: str) -> None:
    put(store, trial(0, {}, completed()))
    store.close()
    with Store.open(url, create=False) as again:
        assert again.records("first") == [trial(0, {}, completed())]
        assert [run.name for run in again.runs()] == ["first"]


def test_knobs_are_stored_with_neutral_ones(store: Store) -> None:
    put(store, trial(0, {"precision": "bf16", "rate": 0.5}))
    assert store.knob_values("first") == {0: {"precision": "bf16", "chunks": 1, "rate": 0.5}}


def test_run_name_is_given_once(store: Store) -> None:
    with pytest.raises(StorageError, match="there is a run 'first'") as caught:
        store.start_run(make_spec())
    assert "autotune resume first" in (caught.value.help or "")
    store.start_run(make_spec("second"))
    assert [run.name for run in store.runs()] == ["first", "second"]


def test_unknown_run_is_named(store: Store) -> None:
    with pytest.raises(UnknownName, match="unknown run 'frist'") as caught:
        store.records("frist")
    assert "did you mean 'first'?" in (caught.value.help or "")


def test_trial_is_added_and_finished_once(store: Store) -> None:
    put(store, trial(0, {}, completed()))
    with pytest.raises(StorageError, match="trial 0 of run 'first' is recorded as completed"):
        store.add_trial("first", trial(0), KNOBS)
    with pytest.raises(StorageError, match="it is completed"):
        store.finish_trial("first", trial(0, {}, completed(accuracy=0.1)), METRIC)
    with pytest.raises(StorageError, match="never started"):
        store.finish_trial("first", trial(1, {}, completed()), METRIC)
    assert store.records("first") == [trial(0, {}, completed())]


def test_front_is_what_was_set_last(store: Store) -> None:
    for number in range(4):
        put(store, trial(number, {"chunks": number + 1}, completed()))
    store.set_front("first", [0, 2])
    store.set_front("first", [2, 3])
    assert [r.number for r in store.records("first") if r.on_front] == [2, 3]
    store.set_front("first", [])
    assert not any(r.on_front for r in store.records("first"))


def test_interrupted_trial_is_repeated_under_its_number(store: Store, url: str) -> None:
    put(store, trial(0, {}, completed()))
    put(store, trial(1, {"chunks": 2}))
    store.close()
    with Store.open(url) as again:
        assert again.interrupt_leftovers("first") == [1]
        assert again.interrupt_leftovers("first") == [1]
        assert again.counts("first") == {"completed": 1, "interrupted": 1}
        put(again, trial(1, {"chunks": 8}, completed(0.7)))
        assert again.records("first")[1] == trial(1, {"chunks": 8}, completed(0.7))
        assert again.knob_values("first")[1]["chunks"] == 8
        (event,) = again.events("first", trial=1)
    assert event.kind == "interrupted"
    assert event.data["config"] == {"chunks": 2}


def test_repeats_come_back_and_the_first_outcome_stays(store: Store, url: str) -> None:
    record = trial(0, {}, completed(0.9))
    put(store, record)
    put(store, trial(1, {"chunks": 2}, completed(0.8)))
    ends = (completed(0.94), OutOfMemory(phase=Phase.FIRST, needed_bytes=5 * 10**9))
    for place, end in enumerate(ends):
        again = Repetition(seed=2**40 + place, started=STARTED + place, outcome=end)
        record = replace(record, repeats=(*record.repeats, again))
        store.add_repeat("first", record, METRIC)
        store.add_repeat("first", record, METRIC)  # to write it twice is to write it once
    with Reader.open_read_only(url) as reader:
        assert reader.records("first") == [record, trial(1, {"chunks": 2}, completed(0.8))]
    mean = record.score(METRIC)
    assert mean is not None
    rows = run_query(url, "select trial, seeds, score, stderr from trials order by trial").rows
    assert rows == [(0, 2, mean.value, mean.stderr), (1, 1, 0.8, 0.01)]
    assert run_query(url, "select value from scores where metric='accuracy' and trial=0").rows == [
        (0.9,)
    ]
    repeats = run_query(url, "select seed, status, score, failure from repeats order by seed").rows
    assert repeats == [
        (2**40, "completed", 0.94, None),
        (2**40 + 1, "out-of-memory", None, "out of memory in first, step 0"),
    ]
    changed = Repetition(seed=2**40, started=STARTED, outcome=completed(0.1))
    with pytest.raises(StorageError, match=f"trial first/0 has run with seed {2**40}"):
        store.add_repeat("first", replace(record, repeats=(changed,)), METRIC)


def test_one_trial_can_be_interrupted(store: Store) -> None:
    put(store, trial(0))
    put(store, trial(1))
    store.interrupt_trial("first", 1)
    assert store.counts("first") == {"running": 1, "interrupted": 1}


def test_resumed_run_keeps_what_it_was_before(store: Store) -> None:
    put(store, trial(0))
    store.finish_run("first", "interrupted")
    assert store.info("first").status == "interrupted"
    assert store.resume_run(make_spec(trials=50)) == [0]
    assert store.info("first").status == "running"
    assert store.spec("first").trials == 50
    (resumed,) = [event for event in store.events("first") if event.kind == "resumed"]
    assert resumed.data["spec"]["trials"] == 10


def test_run_of_a_living_driver_is_not_taken_over(
    store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = Driver(pid=1, host="another-host", born=0.0)
    monkeypatch.setattr(Driver, "current", lambda: elsewhere)
    store.start_run(make_spec("far"))
    monkeypatch.undo()
    clock.time += 30
    assert store.info("far").status == "running"
    with pytest.raises(StorageError, match="driven by process 1 on another-host"):
        store.interrupt_leftovers("far")
    clock.time += 60
    assert store.info("far").status == "interrupted"
    assert store.interrupt_leftovers("far") == []
    assert store.info("far").status == "running"


def test_elapsed_counts_work_and_not_pauses(store: Store, clock: Clock) -> None:
    clock.time += 5
    store.heartbeat("first")
    clock.time += 5
    store.finish_run("first", "interrupted")
    clock.time += 1000
    store.interrupt_leftovers("first")
    clock.time += 7
    store.finish_run("first", "done")
    clock.time += 1000
    store.add_artifact("first", "report", "report.html")
    info = store.info("first")
    assert (info.status, info.started, info.elapsed) == ("done", STARTED, 17.0)
    assert info.finished == STARTED + 1017


def test_events_and_artifacts_come_back(store: Store) -> None:
    step = Event(trial=3, kind="step", data={"step": 2, "loss": 0.5}, time=STARTED)
    note = Event(trial=-1, kind="note", data={}, time=STARTED + 1)
    lost = Event(trial=3, kind="step", data={"step": 3, "loss": float("nan")}, time=STARTED)
    for event in (step, note, lost):
        store.record_event("first", event)
    assert store.events("first") == [step, note, replace(lost, data={"step": 3, "loss": "nan"})]
    assert store.events("first", trial=3)[0] == step
    store.add_artifact("first", "log", Path("trials/3/log.txt"), trial=3)
    (artifact,) = store.artifacts("first")
    assert (artifact.trial, artifact.kind, artifact.path) == (3, "log", "trials/3/log.txt")


def test_views_show_what_was_recorded(store: Store, url: str) -> None:
    for number, end in enumerate(ENDS):
        put(store, trial(number, {"chunks": number + 1}, end))
    store.set_front("first", [0])
    front = run_query(url, "select run, trial, differs, metric, score, stderr, peak_gib from front")
    assert front.rows == [("first", 0, "baseline", "accuracy", 0.9, 0.01, 100 / 1024)]
    needed = run_query(url, "select failure, needed_gib from trials where status='out-of-memory'")
    assert needed.rows == [("out of memory in first, step 0", pytest.approx(5e9 / 2**30))]
    memory = "select max(gib) from memory where trial = 0 and rank = 1 and kind = 'resident'"
    assert run_query(url, memory).rows == [(105 / 1024,)]
    assert run_query(url, "select sum(gib) from anatomy where trial = 0").rows == [(75 / 1024,)]
    text = "select count(*) from knobs where trial = 0 and neutral"
    assert run_query(url, text).rows == [(3,)]
    assert run_query(url, "select limit_gib from runs").rows == [(pytest.approx(540 / 1024),)]
    assert run_query(url, "select n from scores where metric='accuracy' and trial=0").rows == [
        (200,)
    ]


def test_300_trials_of_12_knobs_take_seconds_of_work(store: Store) -> None:
    knobs = [replace(KNOBS[1], name=f"knob{n}") for n in range(12)]
    began = time.process_time()  # other programs on the machine must not fail this
    for number in range(300):
        record = trial(number, {"knob1": number % 16 + 1})
        store.add_trial("first", record, knobs)
        store.finish_trial("first", replace(record, outcome=completed()), METRIC)
    assert time.process_time() - began < 10
    assert len(store.records("first")) == 300
