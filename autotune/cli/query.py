"""`autotune query`: SQL over the study database, read-only."""

from __future__ import annotations

import csv
import sys
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from rich.console import RenderableType
from rich.text import Text

from autotune.cli.options import Common, Flag, Storage
from autotune.core.errors import UsageError
from autotune.report.document import SCHEMA, QueryDocument
from autotune.report.text import Column, Listing, make_table
from autotune.storage.query import QueryResult, run_query, schema
from autotune.storage.run import Run

EXAMPLE = 'autotune query "select trial, score, peak_gib, differs from front"'


def query(
    sql: Annotated[str | None, Parameter(name="SQL", show_default=False)] = None,
    /,
    *,
    run: Annotated[str | None, Parameter(metavar="RUN", show_default=False)] = None,
    format_: Annotated[Literal["table", "csv", "json"], Parameter(name="--format")] = "table",
    schema_: Annotated[bool, Parameter(name="--schema"), Flag] = False,
    storage: Storage = None,
    common: Common = Common(),  # noqa: B008  (frozen; cyclopts fills in what was typed)
) -> None:
    """Ask the study database in SQL, read-only.

    Views: trials, front, knobs, scores, memory, anatomy, events, runs. Their columns: --schema.

    Args:
        sql: One SELECT.
        run: The run whose database is asked; by default the latest.
        format_: How rows are printed.
        schema_: List the views and their columns instead.
        storage: SQLAlchemy URL of the study database, if it is not in the run's folder.
        common: Options of every command.
    """
    if schema_:
        _show_schema(common)
        return
    if sql is None:
        raise UsageError("there is no SQL to run", help=f"{EXAMPLE}\nautotune query --schema")
    if storage and run:
        raise UsageError(
            "a database given by --storage is asked as a whole, with all its runs",
            help=f"leave out --run, and choose in SQL: where run = '{run}'",
        )
    where = storage or Run.open(run, results=common.results).database
    result = run_query(where, sql)
    if common.json or format_ == "json":
        document: QueryDocument = {
            "schema": SCHEMA,
            "columns": result.columns,
            "rows": result.rows,
        }
        common.print_document(document)
    elif format_ == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerows([result.columns, *result.rows])
    else:
        common.out.print(_table(result))


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
    }
    screen: list[RenderableType] = []
    for view in views:
        screen.append(Text(f"{view.name}: {view.help}", style="bold"))
        rows = [(column.name, column.help) for column in view.columns]
        screen += [make_table((Column("column"), Column("what it is", folds=True)), rows), Text()]
    common.show(document, *screen, Listing("Next", [(EXAMPLE, "")]))
