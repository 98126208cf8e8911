"""Connections to a study database, set up so that one writer and many readers get along.

SQLite runs in WAL mode with `synchronous=NORMAL`: readers never wait, a crash of the machine may
cost the last transactions but never the file. A transaction that writes begins with
`BEGIN IMMEDIATE`, so that it waits its turn at the start and not halfway through. Connections to a
server are pooled, and looked at before they are used: one that the server has closed is replaced.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from autotune.core.errors import MissingLibrary, StorageError
from autotune.storage.faults import missing_database, storage_error
from autotune.storage.places import SqliteMode, sqlite_path, sqlite_uri
from autotune.storage.urls import check_server_url, masked

BUSY_SECONDS = 30.0
"""How long a file that another process writes is waited for."""

CONNECT_SECONDS = 10
"""How long a server is waited for, unless the URL has a `connect_timeout`."""

WRITES = "autotune_writes"
"""Execution option of a connection: its transactions write."""

Mode = Literal["create", "write", "read"]


def connect(where: str | Path, mode: Mode, busy: float | None = None) -> Engine:
    """Return an engine for the study database at `where`.

    Args:
        where: A file, a run folder, or an SQLAlchemy URL.
        mode: Whether to create what is missing, to write, or to read only.
        busy: Seconds to wait for a file that is locked; None for `BUSY_SECONDS`.

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
    patience = BUSY_SECONDS if busy is None else busy
    engine = create_engine(
        URL.create("sqlite", database=str(path)), creator=lambda: _open_sqlite(uri, mode, patience)
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


def _open_sqlite(uri: str, mode: Mode, busy: float) -> sqlite3.Connection:
    connection = sqlite3.connect(
        uri, uri=True, timeout=busy, isolation_level=None, check_same_thread=False
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
    check_server_url(url)
    try:
        parsed = make_url(url)
        given = {"connect_timeout"} & set(parsed.query)
        return create_engine(
            parsed,
            pool_pre_ping=True,
            pool_recycle=1800,
            connect_args={} if given else {"connect_timeout": CONNECT_SECONDS},
            hide_parameters=True,
        )
    except (ArgumentError, ValueError):
        # What SQLAlchemy says may quote a part of the URL, such as a port that is none.
        raise StorageError(
            f"'{masked(url)}' is not the URL of a database",
            help="write it like postgresql+psycopg://USER@HOST/DATABASE, or name a file",
        ) from None
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get(error.name or "", error.name)
        raise MissingLibrary(
            f"'{url.partition(':')[0]}' needs {error.name}, which is not installed",
            help=f"pip install {extra}",
        ) from error


_EXTRAS = {"psycopg": "'autotune-memory[postgres]'"}
