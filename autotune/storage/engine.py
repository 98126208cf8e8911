"""Connections to a study database, set up so that one writer and many readers get along.

SQLite runs in WAL mode with `synchronous=NORMAL`: readers never wait, a crash of the machine may
cost the last transactions but never the file. A transaction that writes begins with
`BEGIN IMMEDIATE`, so that it waits its turn at the start and not halfway through.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from autotune.core.errors import MissingLibrary, StorageError
from autotune.storage.faults import missing_database, storage_error
from autotune.storage.places import SqliteMode, sqlite_path, sqlite_uri

BUSY_SECONDS = 30.0
WRITES = "autotune_writes"
"""Execution option of a connection: its transactions write."""

Mode = Literal["create", "write", "read"]


def connect(where: str | Path, mode: Mode) -> Engine:
    """Return an engine for the study database at `where`.

    Args:
        where: A file, a run folder, or an SQLAlchemy URL.
        mode: Whether to create what is missing, to write, or to read only.

    Raises:
        StorageError: If there is no such database, or the URL cannot be read.
        MissingLibrary: If the database needs a driver that is not installed.
    """
    path = sqlite_path(where)
    if path is None:
        return _server_engine(str(where))
    if mode != "create" and not path.is_file():
        raise missing_database(path)
    uri = sqlite_uri(path, _SQLITE_MODES[mode])
    engine = create_engine(
        URL.create("sqlite", database=str(path)), creator=lambda: _open_sqlite(uri, mode)
    )
    event.listen(engine, "begin", _begin)
    return engine


@contextmanager
def said(where: object) -> Iterator[None]:
    """Turn errors of the database at `where` into `StorageError`."""
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error) as error:
        raise storage_error(error, where) from error


_SQLITE_MODES: dict[Mode, SqliteMode] = {"create": "rwc", "write": "rw", "read": "ro"}


def _open_sqlite(uri: str, mode: Mode) -> sqlite3.Connection:
    connection = sqlite3.connect(
        uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
    )
    try:
        connection.execute("PRAGMA foreign_keys=ON")
        if mode != "read":
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _begin(connection: Connection) -> None:
    writes: Any = connection.get_execution_options().get(WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _server_engine(url: str) -> Engine:
    try:
        return create_engine(url)
    except ArgumentError as error:
        raise StorageError(
            f"'{url}' is not the URL of a database",
            help="write it like postgresql+psycopg://USER@HOST/DATABASE, or name a file",
        ) from error
    except ModuleNotFoundError as error:
        raise MissingLibrary(
            f"'{url.partition(':')[0]}' needs {error.name}, which is not installed",
            help=f"pip install {error.name}",
        ) from error
