"""`autotune query`: SQL over the study database, read-only."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from rich.console import RenderableType
from rich.text import Text

from autotune.cli.options import Common, Flag, Storage
from autotune.core.errors import MissingLibrary, StorageError, UsageError
from autotune.report.document import SCHEMA, QueryDocument, plain
from autotune.report.text import Column, Listing, make_table
from autotune.storage.named_queries import QUERIES, SIGN, find_query
from autotune.storage.query import QueryResult, run_query, schema
from autotune.storage.run import Run

EXAMPLE = 'autotune query "select trial, score, peak_gib, differs from front"'
NAMED = f"autotune query {SIGN}{QUERIES[0].name}"

Format = Literal["table", "csv", "json", "parquet"]


def query(
    sql: Annotated[str | None, Parameter(name="SQL|@NAME", show_default=False)] = None,
    /,
    *,
    run: Annotated[str | None, Parameter(metavar="RUN", show_default=False)] = None,
    format_: Annotated[Format, Parameter(name="--format")] = "table",
    output: Annotated[
        Path | None, Parameter(name=["--output", "-o"], metavar="FILE", show_default=False)
    ] = None,
    schema_: Annotated[bool, Parameter(name="--schema"), Flag] = False,
    storage: Storage = None,
    common: Common = Common(),  # noqa: B008  (frozen; cyclopts fills in what was typed)
) -> None:
    """Ask the study database in SQL, read-only.

    Views: trials, front, knobs, scores, memory, anatomy, events, runs. Their columns, and queries
    that have a name: --schema.

    Args:
        sql: One SELECT, or the name of a query: @oom-by-knob.
        run: The run whose database is asked; by default the latest.
        format_: How rows are written; parquet needs --output or a pipe.
        output: A new file for the rows; by default standard output.
        schema_: List the views with their columns, and the named queries, instead.
        storage: SQLAlchemy URL of the study database, if it is not in the run's folder.
        common: Options of every command.
    """
    if schema_:
        _show_schema(common)
        return
    if sql is None:
        raise UsageError(
            "there is no SQL to run", help=f"{EXAMPLE}\n{NAMED}\nautotune query --schema"
        )
    if storage and run:
        raise UsageError(
            "a database given by --storage is asked as a whole, with all its runs",
            help=f"leave out --run, and choose in SQL: where run = '{run}'",
        )
    if sql.startswith(SIGN):
        sql = find_query(sql).sql
    where = storage or Run.open(run, results=common.results).database
    result = run_query(where, sql)
    name = "json" if common.json else format_
    if name == "table" and output is None:
        common.out.print(_table(result))
        return
    _deliver(_WRITERS["csv" if name == "table" else name](result), output, binary=name == "parquet")


def as_csv(result: QueryResult) -> bytes:
    """Return rows as CSV, with a heading."""
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([result.columns, *result.rows])
    return file.getvalue().encode("utf-8", "replace")


def as_json(result: QueryResult) -> bytes:
    """Return rows as one JSON document."""
    document: QueryDocument = {"schema": SCHEMA, "columns": result.columns, "rows": result.rows}
    text = json.dumps(plain(document), ensure_ascii=False, indent=2, allow_nan=False)
    return f"{text}\n".encode("utf-8", "replace")


def as_parquet(result: QueryResult) -> bytes:
    """Return rows as a Parquet file; a column of mixed kinds becomes one of texts.

    Raises:
        MissingLibrary: If pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise MissingLibrary(
            "Parquet needs pyarrow, which is not installed",
            help="pip install pyarrow\nor write --format csv",
        ) from error
    arrays = []
    for index in range(len(result.columns)):
        values = [row[index] for row in result.rows]
        try:
            arrays.append(pa.array(values))
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            arrays.append(pa.array([None if value is None else str(value) for value in values]))
    sink = io.BytesIO()
    parquet.write_table(pa.Table.from_arrays(arrays, names=list(result.columns)), sink)
    return sink.getvalue()


_WRITERS: Mapping[str, Callable[[QueryResult], bytes]] = {
    "csv": as_csv,
    "json": as_json,
    "parquet": as_parquet,
}


def _deliver(content: bytes, output: Path | None, *, binary: bool) -> None:
    if output is None:
        if not binary:
            sys.stdout.write(content.decode())
        elif sys.stdout.isatty():
            raise UsageError("Parquet is no text for a terminal", help="--output rows.parquet")
        else:
            sys.stdout.buffer.write(content)
        return
    try:
        with output.open("xb") as file:
            file.write(content)
    except FileExistsError as error:
        raise StorageError(
            f"'{output}' exists, and results are never overwritten", help="name another file"
        ) from error
    except OSError as error:
        raise StorageError(f"cannot write '{output}': {error.strerror or error}") from error


def _table(result: QueryResult) -> RenderableType:
    numeric = [
        all(isinstance(row[index], int | float | None) for row in result.rows)
        for index in range(len(result.columns))
    ]
    columns = [
        Column(name, "right" if right else "left", folds=not right)
        for name, right in zip(result.columns, numeric, strict=True)
    ]
    return make_table(columns, [[_cell(value) for value in row] for row in result.rows])


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.5g}" if abs(value) < 1e6 else f"{value:.1f}"
    return str(value)


def _show_schema(common: Common) -> None:
    views = schema()
    document = {
        "schema": SCHEMA,
        "views": [
            {
                "name": view.name,
                "help": view.help,
                "columns": [{"name": column.name, "help": column.help} for column in view.columns],
            }
            for view in views
        ],
        "queries": [{"name": q.name, "question": q.question, "sql": q.sql} for q in QUERIES],
    }
    screen: list[RenderableType] = []
    for view in views:
        screen.append(Text(f"{view.name}: {view.help}", style="bold"))
        rows = [(column.name, column.help) for column in view.columns]
        screen += [make_table((Column("column"), Column("what it is", folds=True)), rows), Text()]
    screen.append(Text("Queries with a name", style="bold"))
    asked = [(f"{SIGN}{query.name}", query.question) for query in QUERIES]
    screen += [make_table((Column("name"), Column("what it asks", folds=True)), asked), Text()]
    common.show(document, *screen, Listing("Next", [(EXAMPLE, ""), (NAMED, "")]))
