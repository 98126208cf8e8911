"""Writes wait in order while the database is away, and each gets through once."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from autotune.core.errors import StorageError, UnreachableDatabase
from autotune.storage import buffered
from autotune.storage.buffered import BufferedStore
from autotune.trial.spec import Event
from tests.studies import KNOBS, METRIC, STARTED, completed, make_spec, trial


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "study.db"


@pytest.fixture
def store(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[BufferedStore]:
    monkeypatch.setattr(buffered, "LEAST_PAUSE", 0.01)
    monkeypatch.setattr(buffered, "MOST_PAUSE", 0.02)
    with BufferedStore.open(path, busy=0.01) as store:
        store.start_run(make_spec())
        yield store


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the file as another program would that writes for long."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


def note(number: int) -> Event:
    return Event(trial=-1, kind="note", data={"text": str(number)}, time=STARTED + number)


def put(store: BufferedStore, number: int) -> None:
    record = trial(number, {"chunks": number + 1}, completed())
    store.add_trial("first", replace(record, outcome=None), KNOBS)
    store.record_event("first", note(number))
    store.finish_trial("first", record, METRIC)
    store.set_front("first", [number])


def test_what_is_written_while_the_file_is_locked_is_written_later(
    store: BufferedStore, path: Path
) -> None:
    told: list[str] = []
    store.tell = told.append
    mirrored: list[int] = []
    put(store, 0)
    with locked(path):
        for number in (1, 2, 3):
            put(store, number)
            store.deliver(lambda number=number: mirrored.append(number))
            store.heartbeat("first")
        assert store.waiting == 15
        assert len(store.records("first")) == 1
        assert store.attempt_in(60.0) < 1.0
    store.finish_run("first", "done")
    assert store.waiting == 0
    assert store.attempt_in(60.0) == 60.0
    expected = [trial(n, {"chunks": n + 1}, completed(), on_front=n == 3) for n in range(4)]
    assert store.records("first") == expected
    assert store.events("first") == [note(number) for number in range(4)]
    assert mirrored == [1, 2, 3]
    assert store.info("first").status == "done"
    assert len(told) == 2
    assert "was locked by another program" in told[0]
    assert "nothing is lost" in told[1]


def test_transaction_that_was_committed_unheard_is_not_written_twice(
    store: BufferedStore,
) -> None:
    lost = iter(range(1000))

    def unheard(connection: object) -> None:
        # Each first commit gets through, but its writer hears that the connection broke.
        if next(lost) % 3 == 0:
            connection.connection.commit()  # type: ignore[attr-defined]  # SQLAlchemy's
            cause = sqlite3.OperationalError("database is locked")
            raise OperationalError("COMMIT", {}, cause)

    event.listen(store.engine, "commit", unheard)
    for number in range(4):
        put(store, number)
    store.finish_run("first", "done")
    event.remove(store.engine, "commit", unheard)
    assert [r.number for r in store.records("first")] == [0, 1, 2, 3]
    assert all(record.outcome == completed() for record in store.records("first"))
    assert store.events("first") == [note(number) for number in range(4)]
    assert next(lost) > 30


def test_a_full_buffer_waits_for_the_database(
    store: BufferedStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buffered, "MOST_WAITING", 4)
    monkeypatch.setattr(buffered, "PATIENCE_SECONDS", 0.1)
    with locked(path):
        for number in range(3):
            store.record_event("first", note(number))
        with pytest.raises(UnreachableDatabase, match="4 writes wait") as caught:
            store.record_event("first", note(3))
        assert "autotune resume" in (caught.value.help or "")
    store.finish_run("first", "failed")
    assert len(store.events("first")) == 4


def test_what_never_gets_better_is_raised_at_once(store: BufferedStore) -> None:
    with pytest.raises(StorageError, match="never started"):
        store.finish_trial("first", trial(7, {}, completed()), METRIC)
    assert store.waiting == 0
    put(store, 0)
    assert store.records("first")[0].outcome == completed()


def test_requests_to_stop_are_looked_up_now_and_then(
    store: BufferedStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert store.stop_request("first") is None
    store.request_stop("first", "ada@desk")
    assert store.stop_request("first") is None
    monkeypatch.setattr(buffered, "STOP_SECONDS", 0.0)
    store._next_look = 0.0
    assert store.stop_request("first") == "ada@desk"
    store.finish_run("first", "interrupted")
    store.resume_run(make_spec())
    assert store.stop_request("first") is None
