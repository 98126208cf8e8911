"""`autotune db`: what a database is, and its upgrade; and where a URL with a password may stand."""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from autotune.cli.options import Common
from autotune.storage.migrate import HEAD
from autotune.storage.query import run_query
from autotune.storage.run import Run
from tests.cli.conftest import Command
from tests.cli.recorded import record_run
from tests.recorded import REFERENCE

OLDER = REFERENCE / "lstm"
"""A run that was recorded with version 0002."""


@pytest.fixture
def older() -> Path:
    folder = Path("results") / "lstm"
    folder.mkdir(parents=True)
    shutil.copyfile(OLDER / "study.db", folder / "study.db")
    with closing(sqlite3.connect(folder / "study.db")) as connection:
        # Whatever it has been upgraded to meanwhile: nothing but indexes and an empty table came.
        connection.execute("UPDATE autotune_alembic_version SET version_num = '0002'")
        connection.execute("DROP VIEW IF EXISTS autotune_view_rungs")
        connection.execute("DROP TABLE IF EXISTS autotune_rung")
        connection.execute("DROP INDEX IF EXISTS ix_autotune_trial_front")
        connection.execute("DROP INDEX IF EXISTS ix_autotune_trial_run_id_score")
        connection.commit()
    return folder


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "study.db").read_bytes()).hexdigest()


def test_older_database_is_read_without_being_changed(older: Path, autotune_says: Command) -> None:
    before = digest(older)
    for command in (("show", "lstm"), ("front", "lstm"), ("query", "@front", "--run", "lstm")):
        assert autotune_says(*command).status == 0
    said = autotune_says("db", "show", "lstm")
    assert "version 0002" in said.out
    assert "autotune db upgrade" in said.out
    assert digest(older) == before


def test_older_database_is_upgraded_when_asked(older: Path, autotune_says: Command) -> None:
    run = Run.open(older)
    said = autotune_says("db", "upgrade", "lstm", "--json")
    assert said.status == 0
    assert (said.document["before"], said.document["version"]) == ("0002", HEAD)
    assert Run.open(older) == run
    assert run_query(older, "select * from rungs").rows == []
    said = autotune_says("db", "upgrade", "lstm")
    assert "was up to date" in said.out
    said = autotune_says("db", "show", "lstm", "--json")
    assert said.document["version"] == said.document["newest"] == HEAD
    assert (said.document["runs"], said.document["trials"]) == (1, len(run.records))


def test_database_of_a_running_run_is_not_upgraded(autotune_says: Command) -> None:
    folder = record_run(Path("results"), "mine", status="running")
    with closing(sqlite3.connect(folder / "study.db")) as connection:
        connection.execute("UPDATE autotune_alembic_version SET version_num = '0003'")
        connection.commit()
    said = autotune_says("db", "upgrade", "mine")
    assert said.status == 1
    assert "run 'mine' is being written into" in said.err
    assert "autotune stop mine" in said.err


def test_missing_and_unknown_databases_are_said(autotune_says: Command) -> None:
    said = autotune_says("db", "show")
    assert said.status == 1
    assert "there is no run" in said.err
    record_run(Path("results"), "mine")
    said = autotune_says("db", "upgrade", "mien")
    assert said.status == 2
    assert "did you mean 'mine'?" in said.err


def test_commands_to_type_next_have_no_password() -> None:
    url = "postgresql+psycopg://me:s3cret@host/db"
    assert Common().where(url) == " --storage 'postgresql+psycopg://me:***@host/db'"
    assert Common().where("sqlite:///study.db") == " --storage sqlite:///study.db"
