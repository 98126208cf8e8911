"""Brings a database to the schema of this version, in place.

A fresh database gets the tables of `models.py` at once, without importing alembic; an older one is
upgraded by the scripts in `migrations/versions`; one that a newer autotune wrote is refused
untouched. A file is upgraded by whoever writes it next. A server may be shared with others, so it
is upgraded only when asked: `autotune db upgrade`. Views hold no data, so they are made anew after
every upgrade. The version stands in a table of its own: Optuna keeps its own in `alembic_version`
and would stumble over a foreign one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sqlalchemy import Connection, Engine, inspect, text

from autotune.core.errors import NewerDatabase, StorageError
from autotune.storage.engine import WRITES, said
from autotune.storage.faults import foreign_database
from autotune.storage.models import Base
from autotune.storage.urls import masked
from autotune.storage.views import VIEWS

if TYPE_CHECKING:
    from alembic.config import Config

VERSIONS = ("0001", "0002", "0003", "0004", "0005")
"""Every migration, in order."""

HEAD = VERSIONS[-1]
"""The newest migration, which gives the schema of `models.py`."""

READ_ALIKE = frozenset({HEAD, "0004", "0003", "0002"})
"""Versions that read as `HEAD`: later ones added indexes, and tables of what they do not have."""

VERSION_TABLE = "autotune_alembic_version"
_LOCK = 0x6175746F74756E65  # "autotune"; any number that no other program takes


def migrate(engine: Engine, *, create: bool = False) -> None:
    """Give the database the schema of this version; do nothing if it has it.

    Args:
        engine: A database that may be written.
        create: Whether to make the tables where there are none.

    Raises:
        NewerDatabase: If its version is not known here; nothing was changed.
        StorageError: If it holds no study and `create` is false, if it cannot be written, or if
            it is an older one on a server.
    """
    where = shown(engine)
    with said(where):
        with engine.connect() as connection:
            if current_version(connection) == HEAD:
                return
        with writing_alone(engine) as connection:
            version = current_version(connection)
            if version is not None:
                check_known(version, where)
            if version is None and create:
                _create(connection)
            elif version is None:
                raise foreign_database(where)
            elif version != HEAD:
                if engine.dialect.name != "sqlite":
                    raise older_database(where, version)
                _upgrade(connection)


def upgrade(engine: Engine) -> str:
    """Bring a database to this version, also one on a server.

    Returns:
        The version that it had.

    Raises:
        NewerDatabase: If its version is not known here; nothing was changed.
        StorageError: If it holds no study or cannot be written.
    """
    where = shown(engine)
    with said(where), writing_alone(engine) as connection:
        version = current_version(connection)
        if version is None:
            raise foreign_database(where)
        check_known(version, where)
        if version != HEAD:
            _upgrade(connection)
    return version


@contextmanager
def alone(engine: Engine) -> Iterator[None]:
    """Let no other autotune make tables on the server meanwhile, on whichever connection."""
    if engine.dialect.name == "sqlite":
        yield
    else:
        with writing_alone(engine):
            yield


@contextmanager
def writing_alone(engine: Engine) -> Iterator[Connection]:
    """Give a transaction that no other autotune makes tables or changes them beside."""
    with engine.execution_options(**{WRITES: True}).begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        yield connection


def check_known(version: str, where: str) -> None:
    """Refuse a version that is not known here.

    Raises:
        NewerDatabase: If a newer autotune wrote it.
    """
    if version not in VERSIONS:
        raise NewerDatabase(
            f"'{where}' was written by a newer autotune: it has version {version}, "
            f"this autotune knows versions up to {HEAD}; nothing was changed",
            help="pip install --upgrade autotune-memory",
        )


def older_database(where: str, version: str) -> StorageError:
    """Return the error for a server's database that has to be upgraded first."""
    return StorageError(
        f"'{where}' was written by an older autotune: it has version {version}, "
        f"this autotune writes version {HEAD}",
        help="when no run of an older autotune writes to it any more, upgrade it once:\n"
        "autotune db upgrade --storage URL",
    )


def current_version(connection: Connection) -> str | None:
    """Return the version that a database has, None if it holds no study."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    return connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()


def shown(engine: Engine) -> str:
    """Return how messages name the database: its file, or its URL without the password."""
    url = engine.url
    if url.drivername.startswith("sqlite"):
        return url.database or ""
    return masked(url.render_as_string(hide_password=False))


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


def _upgrade(connection: Connection) -> None:
    for view in VIEWS:
        connection.execute(text(view.drop))
    run_scripts(connection)
    _create_views(connection)


def _create_views(connection: Connection) -> None:
    for view in VIEWS:
        connection.execute(text(view.create))
