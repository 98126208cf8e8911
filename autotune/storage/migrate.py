"""Brings a database to the schema of this version, in place.

A fresh database gets the tables of `models.py` at once, without importing alembic; an older one is
upgraded by the scripts in `migrations/versions`; one that a newer autotune wrote is refused
untouched. Views hold no data, so they are made anew after every upgrade. The version stands in a
table of its own: Optuna keeps its own in `alembic_version` and would stumble over a foreign one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import Connection, Engine, inspect, text

from autotune.core.errors import NewerDatabase
from autotune.storage.engine import WRITES, said
from autotune.storage.faults import foreign_database
from autotune.storage.models import Base
from autotune.storage.views import VIEWS

if TYPE_CHECKING:
    from alembic.config import Config

HEAD = "0002"
"""The newest migration, which gives the schema of `models.py`."""

VERSION_TABLE = "autotune_alembic_version"


def migrate(engine: Engine, *, create: bool = False) -> None:
    """Give the database the schema of this version; do nothing if it has it.

    Args:
        engine: A database that may be written.
        create: Whether to make the tables where there are none.

    Raises:
        NewerDatabase: If its version is not known here; nothing was changed.
        StorageError: If it holds no study and `create` is false, or cannot be written.
    """
    where = shown(engine)
    with said(where), engine.execution_options(**{WRITES: True}).begin() as connection:
        version = current_version(connection)
        if version == HEAD:
            return
        if version is not None:
            _upgrade(connection, version, where)
        elif create:
            _create(connection)
        else:
            raise foreign_database(where)


def current_version(connection: Connection) -> str | None:
    """Return the version that a database has, None if it holds no study."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    return connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()


def shown(engine: Engine) -> str:
    """Return how messages name the database: its file, or its URL without the password."""
    url = engine.url
    return url.database or "" if url.drivername.startswith("sqlite") else repr(url)


def run_scripts(connection: Connection) -> None:
    """Run every migration script that the database has not seen, within its transaction."""
    from alembic import command

    config = alembic_config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def alembic_config() -> Config:
    """Return what alembic needs to find the scripts; commands also want a `connection`."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "autotune.storage:migrations")
    return config


def _create(connection: Connection) -> None:
    Base.metadata.create_all(connection)
    connection.execute(
        text(
            f"CREATE TABLE {VERSION_TABLE} (version_num VARCHAR(32) NOT NULL, "
            f"CONSTRAINT {VERSION_TABLE}_pkc PRIMARY KEY (version_num))"
        )
    )
    connection.execute(text(f"INSERT INTO {VERSION_TABLE} VALUES (:head)"), {"head": HEAD})
    _create_views(connection)


def _upgrade(connection: Connection, version: str, where: str) -> None:
    from alembic.script import ScriptDirectory

    known = {
        script.revision for script in ScriptDirectory.from_config(alembic_config()).walk_revisions()
    }
    if version not in known:
        raise NewerDatabase(
            f"'{where}' was written by a newer autotune: it has version {version}, "
            f"this autotune knows versions up to {HEAD}; nothing was changed",
            help="pip install --upgrade autotune-memory",
        )
    for view in VIEWS:
        connection.execute(text(view.drop))
    run_scripts(connection)
    _create_views(connection)


def _create_views(connection: Connection) -> None:
    for view in VIEWS:
        connection.execute(text(view.create))
