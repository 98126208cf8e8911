"""SQL over a study database, for reading only.

A query sees views of the names that `schema()` lists. On SQLite it runs through `sqlite3` alone, on
a connection that is opened read-only and that authorises nothing but reading; so this module needs
neither SQLAlchemy nor any time to import. On a server it runs in a transaction that may only read,
as one statement, and needs no right but to select: the views are put before it as common table
expressions.
"""

from __future__ import annotations

import difflib
import re
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autotune.core.errors import QueryError
from autotune.storage.faults import foreign_database, missing_database, storage_error
from autotune.storage.places import sqlite_path, sqlite_uri
from autotune.storage.urls import scrubbed
from autotune.storage.views import VIEWS, View

_READS = frozenset(
    {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
)
_QUOTED_OR_COMMENT = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|--[^\n]*|/\*.*?\*/", re.DOTALL)
# What SQLite says, and what PostgreSQL says.
_WRITES = re.compile(
    "not authorized|authorization denied|readonly|read-only|read only|cannot update view|"
    "data-modifying"
)
_DENIED = re.compile(r"permission denied for \w+ (\w+)")
_STARTS = re.compile(
    r"(?is)(?:\s|--[^\n]*\n|/\*.*?\*/)*(with\s+recursive\b|with\b|select\b|values\b)"
)
_NO_TABLE = re.compile(
    r"no such table: (?:main\.|temp\.)?(\w+)|relation \"?(\w+)\"? does not exist"
)
_NO_COLUMN = re.compile(
    r"no such column: (?:\w+\.)?(\w+)|column \"?(?:\w+\.)?(\w+)\"? does not exist"
)
_READ_ONLY_HELP = "write one SELECT; a run is changed only by running and resuming it"


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryResult:
    """What a query found.

    Attributes:
        columns: Names of the columns.
        rows: Values by row; numbers, texts, or None.
        truncated: Whether there were more rows than the limit.
    """

    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    truncated: bool = False


def schema() -> tuple[View, ...]:
    """Return the views that a query sees, with their columns and what each of them is."""
    return VIEWS


def run_query(where: str | Path, sql: str, limit: int | None = None) -> QueryResult:
    """Run one SQL statement that reads.

    Args:
        where: A study database: a file, a run folder, or an SQLAlchemy URL.
        sql: The statement.
        limit: Most rows to return; None for all.

    Raises:
        QueryError: If the statement fails, would write, or is more than one.
        StorageError: If there is no study database.
    """
    statement = _single(sql)
    path = sqlite_path(where)
    if path is None:
        return _query_server(str(where), statement, limit)
    if not path.is_file():
        raise missing_database(path)
    with closing(_open(path)) as connection:
        try:
            cursor = connection.execute(statement)
            found = _fetch(cursor, limit)
        except (sqlite3.Error, sqlite3.Warning) as error:
            raise _explain(error, statement) from error
        if cursor.description is None:
            raise QueryError("this statement returns no rows", help=_READ_ONLY_HELP)
        return _result([column[0] for column in cursor.description], found, limit)


def _single(sql: str) -> str:
    statement = sql.strip().rstrip(";").rstrip()
    bare = _QUOTED_OR_COMMENT.sub("", statement)
    if not bare.strip():
        raise QueryError("there is no SQL to run", help=_example())
    if ";" in bare:
        raise QueryError("only one statement can be run at a time", help="remove all but one")
    return statement


def _open(path: Path) -> sqlite3.Connection:
    connection = None
    try:
        connection = sqlite3.connect(sqlite_uri(path, "ro"), uri=True, isolation_level=None)
        names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'view'").fetchall()
        known = [view for view in VIEWS if (view.stored_name,) in names]
        if not known:
            raise foreign_database(path)
        for view in known:
            # Names of the temporary schema win over those of the file, such as Optuna's `trials`.
            connection.execute(
                f"CREATE TEMP VIEW {view.name} AS SELECT * FROM main.{view.stored_name}"
            )
        connection.execute("PRAGMA query_only=ON")
        connection.set_authorizer(_authorise)
    except BaseException as error:
        if connection is not None:
            connection.close()
        if isinstance(error, sqlite3.Error):
            raise storage_error(error, path) from error
        raise
    return connection


def _authorise(action: int, *details: str | None) -> int:
    return sqlite3.SQLITE_OK if action in _READS else sqlite3.SQLITE_DENY


def _fetch(cursor: Any, limit: int | None) -> list[tuple[Any, ...]]:
    return list(cursor.fetchall() if limit is None else cursor.fetchmany(limit + 1))


def _result(columns: Sequence[str], rows: list[tuple[Any, ...]], limit: int | None) -> QueryResult:
    truncated = limit is not None and len(rows) > limit
    return QueryResult(columns=tuple(columns), rows=rows[:limit], truncated=truncated)


def _query_server(url: str, statement: str, limit: int | None) -> QueryResult:
    from sqlalchemy.exc import SQLAlchemyError

    from autotune.storage.engine import connect, said

    engine = connect(url, "read")
    try:
        with said(url), engine.connect() as connection:
            _begin_reading(connection)
            try:
                # A cursor on the server's side takes nothing but one statement that selects.
                # Drivers read % as the start of a placeholder, though there are none to fill.
                cursor = connection.execution_options(stream_results=True).exec_driver_sql(
                    _with_views(statement, url).replace("%", "%%")
                )
                found = [tuple(row) for row in _fetch(cursor, limit)]
                return _result(list(cursor.keys()), found, limit)
            except SQLAlchemyError as error:
                raise _explain(getattr(error, "orig", None) or error, statement) from error
    finally:
        engine.dispose()


def _begin_reading(connection: Any) -> None:
    """Let a connection do nothing but read, and find the views there."""
    from sqlalchemy import text

    from autotune.storage.migrate import VERSION_TABLE, shown

    if connection.dialect.name == "postgresql":
        connection.execute(text("SET TRANSACTION READ ONLY"))
    else:
        connection.execute(text("START TRANSACTION READ ONLY"))
    if not connection.dialect.has_table(connection, VERSION_TABLE):
        raise foreign_database(shown(connection.engine))


def _with_views(statement: str, url: str) -> str:
    """Put the views that a statement mentions before it, under their short names."""
    start = _STARTS.match(statement)
    if start is None:
        raise _does_more()
    mentioned = [
        view
        for view in VIEWS
        if re.search(rf"(?i)\b{view.name}\b", statement)
        # A name that the statement itself gives to something is its own.
        and not re.search(rf"(?i)\b{view.name}\s+as\s*\(", statement)
    ]
    if not mentioned:
        return statement
    # Else a view that is named twice would be computed as a whole.
    inline = "NOT MATERIALIZED " if url.startswith("postgresql") else ""
    views = ", ".join(
        f"{view.name} AS {inline}(SELECT * FROM {view.stored_name})" for view in mentioned
    )
    word = " ".join(start[1].lower().split())
    if not word.startswith("with"):
        return f"WITH {views} {statement}"
    rest = statement[start.end() :]
    return f"{word} {views}, {rest}"


def _explain(error: BaseException, statement: str) -> QueryError:
    message = scrubbed(str(error).strip().splitlines()[0])
    if match := _DENIED.search(message):
        return QueryError(
            f"this account may not do that with {match[1]}",
            help=f"queries only read views, and need the right to select from them: {_views()}",
        )
    if _WRITES.search(message):
        return _does_more()
    if match := _NO_TABLE.search(message):
        return QueryError(
            message,
            help=_close(match[match.lastindex or 1], [view.name for view in VIEWS]) + _views(),
        )
    if match := _NO_COLUMN.search(message):
        mentioned = [v for v in VIEWS if re.search(rf"\b{v.name}\b", statement)] or list(VIEWS)
        names = list(dict.fromkeys(c.name for view in mentioned for c in view.columns))
        return QueryError(
            message, help=_close(match[match.lastindex or 1], names) + _columns(mentioned)
        )
    return QueryError(message, help=_views())


def _does_more() -> QueryError:
    return QueryError(
        "queries are read-only, and this statement does more than read", help=_READ_ONLY_HELP
    )


def _close(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?\n" if close else ""


def _views() -> str:
    return f"views: {', '.join(view.name for view in VIEWS)}"


def _columns(views: Sequence[View]) -> str:
    return "\n".join(
        f"columns of {view.name}: {', '.join(column.name for column in view.columns)}"
        for view in views
    )


def _example() -> str:
    return f'autotune query "select trial, score, peak_gib from front"\n{_views()}'
