"""Migrations give the schema of the models, refuse what is newer, and leave Optuna alone."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, text

from autotune.core.errors import NewerDatabase
from autotune.storage.engine import connect
from autotune.storage.migrate import (
    HEAD,
    VERSION_TABLE,
    alembic_config,
    current_version,
    migrate,
    run_scripts,
)
from autotune.storage.models import Base
from autotune.storage.reader import Reader
from autotune.storage.store import Store
from tests.studies import KNOBS, make_spec, trial


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = connect(tmp_path / "scripts.db", "create")
    yield engine
    engine.dispose()


def statements(path: Path) -> set[str]:
    with closing(sqlite3.connect(path)) as connection:
        found = connection.execute(
            "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL AND type != 'view'"
        )
        # A column that was added later stands behind the constraints.
        return {" ".join(sorted(re.sub(r"([(),])", r" \1 ", sql).split())) for (sql,) in found}


def dump(path: Path, *, optuna: bool = False) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return [line for line in connection.iterdump() if not optuna or "autotune_" not in line]


def test_scripts_and_models_give_the_same_schema(engine: Engine, tmp_path: Path) -> None:
    with engine.begin() as connection:
        run_scripts(connection)
    Store.open(tmp_path / "models.db").close()
    assert statements(tmp_path / "scripts.db") == statements(tmp_path / "models.db")


def test_alembic_sees_no_difference_from_the_models(engine: Engine) -> None:
    with engine.begin() as connection:
        run_scripts(connection)
        context = MigrationContext.configure(
            connection, opts={"version_table": VERSION_TABLE, "compare_type": True}
        )
        assert compare_metadata(context, Base.metadata) == []
        assert current_version(connection) == HEAD


def test_head_is_the_newest_script() -> None:
    assert ScriptDirectory.from_config(alembic_config()).get_current_head() == HEAD


def test_scripts_can_be_undone(engine: Engine, tmp_path: Path) -> None:
    from alembic import command

    with engine.begin() as connection:
        run_scripts(connection)
        config = alembic_config()
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
    assert all(VERSION_TABLE in sql for sql in statements(tmp_path / "scripts.db"))


def test_older_database_is_upgraded_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "study.db"
    with Store.open(path) as store:
        store.start_run(make_spec())
        store.add_trial("first", trial(0), KNOBS)
        with store.engine.begin() as connection:
            connection.execute(text("DROP VIEW autotune_view_trials"))
    # A newer program, whose newest script has no more to do than this one's.
    for module in ("migrate", "reader"):
        monkeypatch.setattr(f"autotune.storage.{module}.READ_ALIKE", frozenset({"0099"}))
    monkeypatch.setattr("autotune.storage.migrate.HEAD", "0099")
    with Reader.open_read_only(path) as reader:
        assert reader.records("first") == [trial(0)]
        with reader.engine.connect() as connection:
            assert connection.execute(text("SELECT trial FROM autotune_view_trials")).all() == [
                (0,)
            ]


@pytest.mark.parametrize("opening", [Store.open, Reader.open_read_only])
def test_newer_database_is_refused_untouched(tmp_path: Path, opening: object) -> None:
    path = tmp_path / "study.db"
    with Store.open(path) as store:
        store.start_run(make_spec())
        with store.engine.begin() as connection:
            connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '0099'"))
    before = dump(path)
    with pytest.raises(NewerDatabase) as caught:
        opening(path)  # type: ignore[operator]  # either way of opening
    assert "version 0099" in caught.value.message
    assert f"up to {HEAD}; nothing was changed" in caught.value.message
    assert "pip install --upgrade" in (caught.value.help or "")
    assert dump(path) == before


def add_study(url: str, name: str) -> None:
    import optuna

    storage = optuna.storages.RDBStorage(url)
    study = optuna.create_study(storage=storage, study_name=name, directions=["minimize"] * 2)
    study.add_trial(optuna.create_trial(values=[1.0, 2.0]))
    storage.remove_session()
    storage.engine.dispose()


def test_optuna_shares_the_file_before_and_after(tmp_path: Path) -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = tmp_path / "study.db"
    url = f"sqlite:///{path}"
    add_study(url, "before")
    optunas = dump(path, optuna=True)
    with Store.open(path) as store:
        store.start_run(make_spec())
        store.add_trial("first", trial(0), KNOBS)
        assert dump(path, optuna=True) == optunas
        add_study(url, "after")
        store.finish_run("first", "done")
        assert store.records("first") == [trial(0)]
    storage = optuna.storages.RDBStorage(url)
    assert sorted(optuna.get_all_study_names(storage)) == ["after", "before"]
    storage.remove_session()
    storage.engine.dispose()


def test_migrate_does_nothing_twice(engine: Engine, tmp_path: Path) -> None:
    migrate(engine, create=True)
    before = dump(tmp_path / "scripts.db")
    migrate(engine)
    assert dump(tmp_path / "scripts.db") == before
