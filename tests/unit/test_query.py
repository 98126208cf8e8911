"""Queries read, only read, and say what would have worked."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from autotune.core.errors import QueryError, StorageError
from autotune.storage.query import run_query, schema
from autotune.storage.store import Store
from tests.studies import KNOBS, METRIC, completed, make_spec, trial


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with Store.open(tmp_path / "study.db") as store:
        store.start_run(make_spec())
        for number in range(5):
            record = trial(number, {"chunks": number + 1}, completed(0.5 + number / 10))
            store.add_trial("first", replace(record, outcome=None), KNOBS)
            store.finish_trial("first", record, METRIC)
        store.set_front("first", [4])
    return tmp_path / "study.db"


def help_of(path: Path, sql: str) -> str:
    with pytest.raises(QueryError) as caught:
        run_query(path, sql)
    return f"{caught.value.message}\n{caught.value.help}"


def test_every_view_has_the_columns_it_documents(path: Path) -> None:
    for view in schema():
        found = run_query(path, f"select * from {view.name}")
        assert found.columns == tuple(column.name for column in view.columns)
        assert view.help
        assert all(column.help for column in view.columns)


def test_names_of_views_win_over_optunas_tables(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE trials (trial_id INTEGER, number INTEGER)")
    assert run_query(path, "select count(*) from trials").rows == [(5,)]
    assert run_query(path, "select trial from front").rows == [(4,)]


def test_folder_file_and_url_name_the_same_database(path: Path) -> None:
    for where in (path, str(path), path.parent, f"sqlite:///{path}"):
        assert run_query(where, "select name from runs").rows == [("first",)]


def test_limit_says_whether_there_was_more(path: Path) -> None:
    found = run_query(path, "select trial from trials order by trial", limit=2)
    assert (found.rows, found.truncated) == ([(0,), (1,)], True)
    found = run_query(path, "select trial from trials", limit=5)
    assert (len(found.rows), found.truncated) == (5, False)


def test_semicolons_in_texts_and_at_the_end_are_fine(path: Path) -> None:
    sql = "with t as (select 'a;b' as x) select x, \"x\" /* ; */ from t -- ;\n;"
    assert run_query(path, sql).rows == [("a;b", "a;b")]


@pytest.mark.parametrize(
    "sql",
    [
        "delete from autotune_trial",
        "update autotune_trial set status = 'completed'",
        "insert into autotune_run (name) values ('x')",
        "drop view autotune_view_trials",
        "create table t (x)",
        "create temp table t (x)",
        "with x as (select 1) delete from autotune_trial",
        "pragma query_only=off",
        "pragma journal_mode=delete",
        "vacuum",
        "begin immediate",
    ],
)
def test_whatever_writes_is_refused(path: Path, sql: str) -> None:
    before = path.read_bytes()
    assert "read-only" in help_of(path, sql)
    assert path.read_bytes() == before


def test_no_other_file_is_made(path: Path) -> None:
    other = path.parent / "other.db"
    assert "read-only" in help_of(path, f"attach database '{other}' as other")
    assert "read-only" in help_of(path, f"attach database 'file:{other}?mode=rwc' as other")
    assert "read-only" in help_of(path, f"vacuum into '{other}'")
    assert not other.exists()


def test_more_than_one_statement_is_refused(path: Path) -> None:
    assert "only one statement" in help_of(path, "select 1; select 2")


def test_nothing_is_refused(path: Path) -> None:
    for sql in ("", "  ;", "-- only a remark"):
        assert "there is no SQL to run" in help_of(path, sql)


def test_unknown_table_lists_the_views(path: Path) -> None:
    text = help_of(path, "select * from trails")
    assert "no such table: trails" in text
    assert "did you mean 'trials'?" in text
    assert "views: trials, front, knobs" in text


def test_unknown_column_lists_those_of_its_view(path: Path) -> None:
    text = help_of(path, "select t.peak_gb from trials t")
    assert "did you mean 'peak_gib'?" in text
    assert "columns of trials: run, trial, status" in text
    assert "columns of memory" not in text


def test_broken_sql_says_what_the_database_says(path: Path) -> None:
    assert 'near "form": syntax error' in help_of(path, "select * form trials")


def test_missing_and_foreign_databases_are_said(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="there is no study database"):
        run_query(tmp_path / "none.db", "select 1")
    with closing(sqlite3.connect(tmp_path / "other.db")) as other:
        other.execute("CREATE TABLE t (x)")
    with pytest.raises(StorageError, match="holds no autotune study"):
        run_query(tmp_path / "other.db", "select 1")
    (tmp_path / "text.db").write_text("some text that is long enough\n" * 50)
    with pytest.raises(StorageError, match="is not a study database"):
        run_query(tmp_path / "text.db", "select 1")


def test_a_run_can_be_queried_while_it_is_written(path: Path) -> None:
    with Store.open(path) as store:
        store.add_trial("first", trial(5), KNOBS)
        found = run_query(path, "select status from trials where trial = 5")
        store.heartbeat("first")
    assert found.rows == [("running",)]


def test_queries_import_no_library(path: Path) -> None:
    program = (
        "import sys; from autotune.storage.query import run_query; "
        "run_query(sys.argv[1], 'select * from trials'); "
        "assert not {'sqlalchemy', 'alembic', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program, str(path)], check=True, timeout=60)
