"""What holds for a database on a server: several writers, accounts that only read, upgrades."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from alembic import command
from sqlalchemy import Engine, text

from autotune.core.errors import (
    MissingLibrary,
    NewerDatabase,
    QueryError,
    StorageError,
    UnreachableDatabase,
)
from autotune.storage.engine import connect
from autotune.storage.migrate import (
    HEAD,
    VERSION_TABLE,
    alembic_config,
    current_version,
    run_scripts,
    upgrade,
)
from autotune.storage.named_queries import QUERIES
from autotune.storage.query import run_query, schema
from autotune.storage.reader import Reader
from autotune.storage.store import Store
from tests.postgres import PASSWORD, READER_PASSWORD, PostgresServer
from tests.studies import ENDS, KNOBS, METRIC, completed, make_spec, trial

ROOT = Path(__file__).resolve().parents[2]
WRITER = """
import sys
from dataclasses import replace
from autotune.storage.store import Store
from tests.studies import KNOBS, METRIC, completed, make_spec, trial
url, name = sys.argv[1:]
with Store.open(url) as store:
    store.start_run(make_spec(name))
    for number in range(12):
        record = trial(number, {"chunks": number + 1}, completed())
        store.add_trial(name, replace(record, outcome=None), KNOBS)
        store.finish_trial(name, record, METRIC)
        store.set_front(name, [number])
    store.finish_run(name, "done")
"""


@pytest.fixture
def url(postgres: PostgresServer) -> str:
    return postgres.empty_database()


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    engine = connect(url, "create")
    yield engine
    engine.dispose()


@pytest.fixture
def recorded(url: str) -> str:
    with Store.open(url) as store:
        store.start_run(make_spec())
        for number, end in enumerate(ENDS):
            record = trial(number, {"chunks": number + 1}, end)
            store.add_trial("first", replace(record, outcome=None), KNOBS)
            store.finish_trial("first", record, METRIC)
        store.set_front("first", [0])
        store.finish_run("first", "done")
    return url


def set_version(url: str, version: str) -> None:
    engine = connect(url, "write")
    with engine.begin() as connection:
        connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '{version}'"))
    engine.dispose()


def test_several_runs_write_at_once_into_a_database_that_was_empty(url: str) -> None:
    names = ["one", "two", "three"]
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, url, name], cwd=ROOT) for name in names
    ]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0, 0]
    with Reader.open_read_only(url) as reader:
        assert sorted(run.name for run in reader.runs()) == sorted(names)
        for name in names:
            assert reader.info(name).status == "done"
            records = reader.records(name)
            assert [r.outcome for r in records] == [completed()] * 12
            assert [r.number for r in records if r.on_front] == [11]


def test_account_that_may_only_select_reads_everything(
    recorded: str, postgres: PostgresServer
) -> None:
    url = postgres.reader_url(recorded)
    with Reader.open_read_only(url) as reader:
        assert [r.outcome for r in reader.records("first")] == list(ENDS)
    for view in schema():
        found = run_query(url, f"select * from {view.name}")
        assert found.columns == tuple(column.name for column in view.columns)
    for query in QUERIES:
        assert run_query(url, query.sql).columns
    assert run_query(url, "select trial from front").rows == [(0,)]


@pytest.mark.parametrize(
    "sql",
    [
        "delete from autotune_trial",
        "update autotune_trial set status = 'completed'",
        "drop view autotune_view_trials",
        "create table t (x int)",
        "with x as (delete from autotune_trial returning id) select * from x",
        "select nextval('autotune_trial_id_seq')",
        "vacuum",
    ],
)
@pytest.mark.parametrize("account", ["owner", "reader"])
def test_whatever_writes_is_refused(
    sql: str, account: str, recorded: str, postgres: PostgresServer
) -> None:
    url = recorded if account == "owner" else postgres.reader_url(recorded)
    with pytest.raises(QueryError) as caught:
        run_query(url, sql)
    said = f"{caught.value.message} {caught.value.help}"
    assert "read-only" in said or "may not do that" in said
    assert run_query(url, "select count(*) from trials").rows == [(len(ENDS),)]


def test_a_second_statement_is_refused_by_the_server_too(recorded: str) -> None:
    with pytest.raises(QueryError, match="only one statement"):
        run_query(recorded, "select 1; select 2")
    # A text with a backslash ends where the check before does not see it.
    hidden = r"select E'\'' ; commit; delete from autotune_trial; --'"
    with pytest.raises(QueryError):
        run_query(recorded, hidden)
    assert run_query(recorded, "select count(*) from trials").rows == [(len(ENDS),)]


def test_statements_may_have_tables_of_their_own(recorded: str) -> None:
    sql = "with best as (select * from trials where feasible) select count(*) from best"
    assert run_query(recorded, sql).rows == [(1,)]
    numbers = "n(x) AS (select 1 union all select x + 1 from n where x < 3)"
    sql = f"WITH RECURSIVE {numbers} select n.x from n, runs"
    assert run_query(recorded, sql).rows == [(1,), (2,), (3,)]
    sql = "-- a remark\n /* and one more */ with trials as (select 5 as x) select x from trials"
    assert run_query(recorded, sql).rows == [(5,)]
    assert run_query(recorded, "select 'a % b' where 'abc' like 'a%'").rows == [("a % b",)]


def test_unknown_names_are_answered_with_near_ones(recorded: str) -> None:
    for sql, near in (
        ("select * from trails", "trials"),
        ("select t.peak_gb from trials t", "peak_gib"),
    ):
        with pytest.raises(QueryError) as caught:
            run_query(recorded, sql)
        assert f"did you mean '{near}'?" in (caught.value.help or "")


def test_writing_needs_an_account_that_may_write(recorded: str, postgres: PostgresServer) -> None:
    with Store.open(postgres.reader_url(recorded)) as store:
        with pytest.raises(StorageError, match="lacks a right: permission denied") as caught:
            store.request_stop("first", "me")
    assert READER_PASSWORD not in str(caught.value.to_json())


def test_older_database_is_upgraded_only_when_asked(url: str, engine: Engine) -> None:
    config = alembic_config()
    with engine.begin() as connection:
        run_scripts(connection)
        config.attributes["connection"] = connection
        command.downgrade(config, "0001")
    for opening in (Store.open, Reader.open_read_only):
        with pytest.raises(StorageError, match="written by an older autotune") as caught:
            opening(url)
        assert "autotune db upgrade" in (caught.value.help or "")
    with engine.begin() as connection:
        assert current_version(connection) == "0001"
    assert upgrade(engine) == "0001"
    assert upgrade(engine) == HEAD
    with Store.open(url) as store:
        store.start_run(make_spec())
    assert run_query(url, "select name from runs").rows == [("first",)]


def test_database_that_lacks_only_indexes_is_read_as_it_is(recorded: str) -> None:
    set_version(recorded, "0002")
    with Reader.open_read_only(recorded) as reader:
        assert len(reader.records("first")) == len(ENDS)
    with pytest.raises(StorageError, match="version 0002"):
        Store.open(recorded)


def test_newer_database_is_refused(recorded: str) -> None:
    set_version(recorded, "0099")
    for opening in (Store.open, Reader.open_read_only):
        with pytest.raises(NewerDatabase, match="version 0099"):
            opening(recorded)


def test_database_without_a_study_is_said(url: str) -> None:
    with pytest.raises(StorageError, match="holds no autotune study"):
        Reader.open_read_only(url)
    with pytest.raises(StorageError, match="holds no autotune study"):
        run_query(url, "select 1")


@pytest.mark.parametrize("opening", [Store.open, Reader.open_read_only, run_query])
def test_what_is_wrong_with_a_server_is_said_without_the_password(
    opening: object, postgres: PostgresServer
) -> None:
    arguments = ("select 1",) if opening is run_query else ()
    name = postgres.new_database().rpartition("/")[2] if opening is Store.open else "study0"
    cases = {
        postgres.url(name, password="wr0ng-word"): ("does not accept", StorageError),
        postgres.url("nowhere"): ("is not there as named", StorageError),
        postgres.url(name).replace(str(postgres.port), "1"): ("answer", UnreachableDatabase),
        postgres.url(name).replace("psycopg", "pg8000"): ("not installed", MissingLibrary),
        postgres.url(name, password="two@wr0ng@words"): ("more than one @", StorageError),
        postgres.url(name).replace(str(postgres.port), "port"): ("not the URL", StorageError),
    }
    for url, (phrase, kind) in cases.items():
        with pytest.raises(kind, match=phrase) as caught:
            opening(url, *arguments)  # type: ignore[operator]  # any way of opening
        told = f"{caught.value.to_json()}"
        assert PASSWORD not in told
        assert "wr0ng" not in told
