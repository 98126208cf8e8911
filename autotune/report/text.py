"""Words, numbers and tables of the terminal: one look for every screen.

Configurations print as their difference from the baseline, memory in GiB, scores with the digits of
their metric and their standard error. Text that users wrote never meets rich markup: cells are
`Text`, and consoles are made with markup off.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Literal

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from autotune.core.budget import Budget
from autotune.core.errors import AutotuneError
from autotune.core.knob import Knob
from autotune.core.outcome import Score
from autotune.core.record import TrialRecord
from autotune.core.units import gib
from autotune.core.workload import Metric

WIDE = 100
"""From this width on, tables show bars."""

BAR = 12
ROWS = 8
"""Rows of a table that is not asked for in full."""

Justify = Literal["left", "right", "center"]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        title: Its heading.
        justify: `"right"` for numbers.
        folds: Whether long cells take several lines; all others are never cut.
    """

    title: str
    justify: Justify = "left"
    folds: bool = False


class Listing:
    """Names and what they are, side by side: `Next` lines, commands, helps."""

    def __init__(self, title: str, rows: Sequence[tuple[str, str]]) -> None:
        self.title = title
        self.rows = rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the lines; what something is goes below its name where both do not fit."""
        indent = len(self.title) + 2 if self.title else 0
        room = options.max_width - indent - 3
        width = self._width(room)
        for index, (name, what) in enumerate(self.rows):
            lead = f"{self.title}  " if index == 0 and self.title else " " * indent
            line = Text(lead, style="bold").append(name, style="not bold")
            if cell_len(name) <= width:
                yield line.append(f"{'':{width - cell_len(name) + 3}}{what}", style="not bold dim")
            else:
                yield line
                if what:
                    yield Text(f"{'':{indent + 3}}{what}", style="dim")

    def _width(self, room: int) -> int:
        """Return the greatest width up to which all names have what they are beside them."""
        lengths = [(cell_len(name), cell_len(what)) for name, what in self.rows]
        fitting = (
            width
            for width, _ in lengths
            if all(width + what <= room for name, what in lengths if name <= width)
        )
        return max(fitting, default=0)


class _Console(Console):
    """A console that leaves it to its program what to do when nobody reads any more."""

    def on_broken_pipe(self) -> None:
        """Let the error through; rich would end the program here."""
        raise BrokenPipeError


def make_console(file: IO[str], *, plain: bool = False, width: int | None = None) -> Console:
    """Return a console on a stream that takes text literally.

    Args:
        file: Where it writes.
        plain: Whether no escape code may be written: no colours, nothing is redrawn.
        width: Columns; by default the terminal's, or 80 where there is none.
    """
    plain = plain or not is_terminal(file)
    return _Console(
        file=file,
        markup=False,
        highlight=False,
        emoji=False,
        soft_wrap=False,
        width=width,
        color_system=None if plain else "auto",
        force_terminal=False if plain else None,
        legacy_windows=False,
    )


def is_terminal(file: IO[str]) -> bool:
    """Whether a stream ends in a terminal that understands escape codes, and these are wanted."""
    dumb = os.environ.get("TERM", "").lower() in ("dumb", "unknown")
    return file.isatty() and not dumb and not os.environ.get("NO_COLOR")


def make_table(columns: Sequence[Column], rows: Sequence[Sequence[str | Text]]) -> Table:
    """Return a table with a rule below its headings and nothing else drawn."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False)
    for column in columns:
        table.add_column(
            Text(column.title),
            justify=column.justify,
            no_wrap=not column.folds,
            overflow="fold",
            header_style="bold",
        )
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in row))
    return table


def score_text(score: Score | None, metric: Metric) -> str:
    """Show a score with its standard error: `8.41 ±.02`; `–` if there is none."""
    if score is None:
        return "–"
    spread = "" if score.stderr is None else f" ±{error_text(score.stderr, metric.digits)}"
    return f"{score.value:.{metric.digits}f}{spread}"


def error_text(stderr: float, digits: int) -> str:
    """Show a standard error without its leading zero: `.02`."""
    return f"{stderr:.{digits}f}".removeprefix("0") if digits else f"{stderr:.0f}"


def rate_text(per_second: float) -> str:
    """Show tokens per second; `–` if nothing was measured."""
    if per_second <= 0:
        return "–"
    return f"{per_second:.0f}" if per_second >= 10 else f"{per_second:.2f}"


def memory_text(amount: int) -> str:
    """Show bytes as a number of GiB; `–` if nothing was measured."""
    return gib(amount) if amount > 0 else "–"


def signed(value: float, digits: int) -> str:
    """Show a difference with its sign; one that rounds to nothing has none."""
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0:
        return text
    return f"{'+' if value > 0 else '−'}{text}"


def bar(share: float, width: int = BAR) -> str:
    """Draw a share of a whole: `█████░░░░░░░`."""
    full = round(min(max(share, 0.0), 1.0) * width)
    return "█" * full + "░" * (width - full)


def trials_table(
    records: Sequence[TrialRecord],
    metric: Metric,
    knobs: Sequence[Knob],
    *,
    names: Mapping[str, TrialRecord] | None = None,
    budget: Budget | None = None,
) -> Table:
    """Return completed trials as a table.

    Args:
        records: The trials; ignored if `names` are given.
        metric: What is searched for.
        knobs: Every knob, in order.
        names: The trials by what each row is called, in an extra first column.
        budget: Adds a bar of how much of it each trial needs.
    """
    named = list(names.items()) if names is not None else [("", record) for record in records]
    columns = [
        Column("#", "right"),
        Column(metric.name, "right"),
        Column("peak GiB", "right"),
        Column("tok/s", "right"),
    ]
    if names is not None:
        columns.insert(0, Column(""))
    if budget is not None:
        columns.append(Column("of budget"))
    columns.append(Column("differs from baseline", folds=True))
    rows = []
    for name, record in named:
        measured = record.outcome.measurement if record.outcome else None
        row = [name] if names is not None else []
        row += [str(record.number), score_text(record.score(metric), metric)]
        row.append(memory_text(measured.peak_bytes if measured else 0))
        row.append(rate_text(measured.throughput if measured else 0.0))
        if budget is not None:
            share = (measured.footprint_bytes if measured else 0) / budget.total_bytes
            row.append(f"{bar(share, 8)} {share:4.0%}")
        row.append(record.config.describe(knobs))
        rows.append(row)
    return make_table(columns, rows)


def error_lines(error: AutotuneError) -> Text:
    """Return an error as a screen shows it: what and where, the context, what to type instead."""
    text = Text("error  ", style="bold red")
    if error.where:
        text.append(f"{error.where}  ", style="not bold default")
    text.append(error.message, style="not bold default")
    for line in error.context:
        text.append(f"\n   {line}", style="not bold default")
    for index, line in enumerate((error.help or "").splitlines()):
        text.append("\nhelp   " if index == 0 else "\n       ", style="bold default")
        text.append(line, style="not bold default")
    return text
