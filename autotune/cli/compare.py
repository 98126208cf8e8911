"""`autotune compare`: two trials or two runs side by side."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter
from rich.console import RenderableType
from rich.text import Text

from autotune.cli.options import Common, Storage
from autotune.core.errors import UsageError
from autotune.knobs import BUILTIN
from autotune.report.compare import Comparison, Quantity, compare_runs, compare_trials
from autotune.report.document import SCHEMA, CompareDocument
from autotune.report.text import Column, Listing, make_table, signed
from autotune.storage.run import find_run

EXAMPLE = "autotune compare qwen-16gb/17 qwen-16gb/22\nautotune compare qwen-16gb qwen-8gb"


def compare(
    a: Annotated[str, Parameter(name="A")],
    b: Annotated[str, Parameter(name="B")],
    /,
    *,
    storage: Storage = None,
    common: Common = Common(),  # noqa: B008  (frozen; cyclopts fills in what was typed)
) -> None:
    """Set two trials or two runs side by side: what differs, by how much, and whether it is told.

    Args:
        a: A trial such as qwen-16gb/17, or a run.
        b: Another one of the same kind; a number alone is a trial of the first one's run.
        storage: SQLAlchemy URL of the study database, if it is not in the run's folder.
        common: Options of every command.
    """
    first, number = find_run(a, results=common.results, storage=storage)
    if number is not None and b.isdigit():
        b = f"{a.rpartition('/')[0]}/{b}"
    second, other = find_run(b, results=common.results, storage=storage)
    if (number is None) != (other is None):
        raise UsageError(
            "a trial can only be compared with a trial, a run with a run", help=EXAMPLE
        )
    if number is None or other is None:
        found = compare_runs(first, second, BUILTIN)
    else:
        found = compare_trials((first, first.trial(number)), (second, second.trial(other)), BUILTIN)
    options = common.where(storage)
    common.show(_document(found), *_screen(found, options, trials=number is not None))


def _document(found: Comparison) -> CompareDocument:
    return {
        "schema": SCHEMA,
        "a": found.a,
        "b": found.b,
        "differs": [{"name": name, "a": one, "b": other} for name, one, other in found.differs],
        "quantities": [
            {
                "name": quantity.name,
                "a": quantity.a,
                "b": quantity.b,
                "difference": quantity.difference,
                "error": quantity.error,
                "told": quantity.told,
            }
            for quantity in found.quantities
        ],
        "notes": found.notes,
    }


def _screen(found: Comparison, options: str, *, trials: bool) -> list[RenderableType]:
    parts: list[RenderableType] = [Text(f"{found.a} and {found.b}", style="bold")]
    parts += [Text(), Text("What differs", style="bold"), Text()]
    if found.differs:
        columns = (Column("", folds=True), Column(found.a, folds=True), Column(found.b, folds=True))
        parts.append(make_table(columns, found.differs))
    else:
        parts.append(Text("nothing in what they were asked to do"))
    if found.quantities:
        parts += [Text(), Text("What was measured", style="bold"), Text(), _table(found)]
    if found.notes:
        parts.append(Text())
    parts += [Text(note) for note in found.notes]
    verb, what = ("show", "one of them in full") if trials else ("report", "one of them in full")
    rows = [(f"autotune {verb} {found.b}{options}", what)]
    if trials:
        rows.append((f"autotune show {found.b} --why{options}", "which knob saves how much"))
    return [*parts, Text(), Listing("Next", rows)]


def _table(found: Comparison) -> RenderableType:
    columns = (
        Column(""),
        Column(found.a, "right"),
        Column(found.b, "right"),
        Column("difference", "right"),
        Column("told"),
    )
    return make_table(columns, [_row(quantity) for quantity in found.quantities])


def _row(quantity: Quantity) -> tuple[str, ...]:
    digits = quantity.digits
    shown = ["–" if value is None else f"{value:.{digits}f}" for value in (quantity.a, quantity.b)]
    difference = quantity.difference
    text = "–" if difference is None else signed(difference, digits)
    if difference is not None and quantity.error is not None:
        text += f" ±{quantity.error:.{digits}f}"
    elif difference is not None and quantity.a:
        text += f" ({signed(100 * difference / abs(quantity.a), 0)}%)"
    told = {None: "", True: "yes", False: "no"}[quantity.told]
    return (quantity.name, *shown, text, told)
