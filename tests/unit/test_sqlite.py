"""What goes wrong with a study database in a file, and what is said then."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from autotune.core.errors import MissingLibrary, StorageError
from autotune.storage.driver import Driver
from autotune.storage.reader import Reader
from autotune.storage.store import Store
from autotune.trial.spec import Event
from tests.studies import KNOBS, METRIC, completed, make_spec, trial

ROOT = Path(__file__).resolve().parents[2]


def new_store(path: Path) -> Store:
    store = Store.open(path)
    store.start_run(make_spec())
    return store


def test_opening_a_fresh_database_is_quick(tmp_path: Path) -> None:
    Store.open(tmp_path / "warm.db").close()
    began = time.process_time()
    Store.open(tmp_path / "study.db").close()
    assert time.process_time() - began < 0.3


def test_fresh_database_needs_no_alembic(tmp_path: Path) -> None:
    program = (
        "import sys; from autotune.storage.store import Store; "
        "Store.open(sys.argv[1]).close(); assert 'alembic' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "s.db")], check=True, timeout=60)


def test_readers_never_wait_for_the_writer(tmp_path: Path) -> None:
    with new_store(tmp_path / "study.db") as store, store.engine.connect() as connection:
        pragmas = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        values = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in pragmas]
    assert values == ["wal", 1, 1, 30_000]


def test_full_disk_is_said_and_loses_nothing(tmp_path: Path) -> None:
    with new_store(tmp_path / "study.db") as store:
        store.add_trial("first", trial(0), KNOBS)
        with store.engine.connect() as connection:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
            connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
        long = Event(trial=0, kind="note", data={"text": "x" * 10**6})
        with pytest.raises(StorageError, match="the disk is full") as caught:
            store.record_event("first", long)
        assert "autotune resume" in (caught.value.help or "")
        with store.engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA max_page_count=1000000")
        store.finish_trial("first", trial(0, {}, completed()), METRIC)
        assert store.records("first") == [trial(0, {}, completed())]


def test_read_only_database_is_said(tmp_path: Path) -> None:
    new_store(tmp_path / "study.db").close()
    with Reader.open_read_only(tmp_path / "study.db") as reader:
        writer = Store(reader.engine)
        with pytest.raises(StorageError, match="is read-only") as caught:
            writer.add_trial("first", trial(0), KNOBS)
    assert "--results DIR" in (caught.value.help or "")


def test_database_can_be_read_where_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_store(tmp_path / "study.db").close()
    monkeypatch.setattr("autotune.storage.places.os.access", lambda path, mode: False)
    with Reader.open_read_only(tmp_path / "study.db") as reader:
        assert [run.name for run in reader.runs()] == ["first"]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["study.db"]


def test_folder_that_is_a_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(StorageError, match="cannot be opened or created"):
        Store.open(tmp_path / "taken" / "study.db")


def test_missing_database_is_not_created(tmp_path: Path) -> None:
    for opening in (lambda p: Store.open(p, create=False), Reader.open_read_only):
        with pytest.raises(StorageError, match="there is no study database at"):
            opening(tmp_path / "study.db")
    assert not list(tmp_path.iterdir())


def test_other_databases_are_refused(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "other.db")) as other:
        other.execute("CREATE TABLE t (x)")
    for opening in (lambda p: Store.open(p, create=False), Reader.open_read_only):
        with pytest.raises(StorageError, match="holds no autotune study"):
            opening(tmp_path / "other.db")


@pytest.mark.parametrize("opening", [Store.open, Reader.open_read_only])
def test_file_that_is_no_database_is_said(tmp_path: Path, opening: object) -> None:
    (tmp_path / "study.db").write_text("not a database, but long enough to be looked at\n" * 50)
    with pytest.raises(StorageError, match="is not a study database"):
        opening(tmp_path / "study.db")  # type: ignore[operator]  # either way of opening


def test_locked_database_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autotune.storage.engine.BUSY_SECONDS", 0.05)
    with new_store(tmp_path / "study.db") as store:
        with closing(sqlite3.connect(tmp_path / "study.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StorageError, match="was locked by another program"):
                store.heartbeat("first")
        store.heartbeat("first")


def test_memory_url_is_refused() -> None:
    with pytest.raises(StorageError, match="in memory"):
        Store.open("sqlite://")


def test_unreadable_url_is_said() -> None:
    with pytest.raises(StorageError, match="is not the URL of a database"):
        Store.open("nosuchdialect+x://host/db")


def test_missing_driver_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    with pytest.raises(MissingLibrary, match="psycopg2, which is not installed") as caught:
        Store.open("postgresql+psycopg2://host/db")
    assert caught.value.help == "pip install psycopg2"


def test_killed_driver_leaves_an_interrupted_run(tmp_path: Path) -> None:
    program = (
        "import os, sys; from autotune.storage.store import Store; "
        "from tests.studies import KNOBS, make_spec, trial; "
        "store = Store.open(sys.argv[1]); store.start_run(make_spec()); "
        "store.add_trial('first', trial(0, {'chunks': 4}), KNOBS); os.kill(os.getpid(), 9)"
    )
    path = tmp_path / "study.db"
    command = [sys.executable, "-c", program, str(path)]
    done = subprocess.run(command, cwd=ROOT, check=False, timeout=60)
    assert done.returncode == -9
    with Reader.open_read_only(path) as reader:
        assert reader.info("first").status == "interrupted"
        assert reader.counts("first") == {"interrupted": 1}
        assert reader.records("first") == [trial(0, {"chunks": 4})]
    with Store.open(path) as store:
        assert store.interrupt_leftovers("first") == [0]


def test_process_id_used_again_is_not_the_driver() -> None:
    me = Driver.current()
    assert me.alive(heartbeat=0.0, now=1e9)
    assert not replace(me, born=me.born - 1000).alive(heartbeat=0.0, now=0.0)
