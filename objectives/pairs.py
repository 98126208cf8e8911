"""Pairs of texts, one to read and one to write, out of the user's columns."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from autotune.core.errors import DataError

from .columns import held_out
from .files import Splits, Table
from .limits import held_apart

SOURCE_NAMES = ("source", "input", "text", "question", "document", "article")
TARGET_NAMES = ("target", "output", "label", "answer", "summary", "translation", "highlights")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Texts to read, and what is to be written for each.

    Attributes:
        sources: What is read.
        targets: What is written.
    """

    sources: Sequence[str]
    targets: Sequence[str]

    def __len__(self) -> int:
        return len(self.sources)

    def pick(self, places: Sequence[int]) -> Pairs:
        """Return the pairs at these places, in their order."""
        return Pairs(
            sources=[self.sources[place] for place in places],
            targets=[self.targets[place] for place in places],
        )


def split_pairs(splits: Splits, source: str | None, target: str | None) -> tuple[Pairs, Pairs]:
    """Return what to train on and what to evaluate on, in random but fixed order.

    Args:
        splits: The user's data.
        source: Column of what is read, or None to choose one of `SOURCE_NAMES`.
        target: Column of what is written, or None to choose one of `TARGET_NAMES`.

    Raises:
        DataError: If a column is missing or holds something else.
    """
    train = _pairs(splits.train, source, target)
    if splits.validation is None:
        training, held = held_apart(len(train), "pairs", splits.train.where)
        return train.pick(training), train.pick(held)
    validation = _pairs(splits.validation, source, target)
    later, first = held_out(len(validation))
    return train, validation.pick(first + later)


def column(table: Table, asked: str | None, usual: Sequence[str], role: str, option: str) -> str:
    """Return the name of a column that exists.

    Args:
        table: The data.
        asked: What the user typed, if anything.
        usual: Names that it usually has, the best first.
        role: What it is, for messages: `"source"`.
        option: What chooses it on the command line.

    Raises:
        DataError: If there is none.
    """
    if table.plain:
        raise DataError(
            f"plain text has no column for the {role}",
            where=table.where,
            help="give a table (.csv, .jsonl, .parquet)",
        )
    name = asked or next((name for name in usual if name in table.columns), None)
    if name in table.columns:
        return name
    names = ", ".join(table.columns)
    if name is None:
        raise DataError(
            f"which column is the {role}? There is none called {' or '.join(usual)}",
            where=table.where,
            help=f"choose with {option}: {names}",
        )
    close = difflib.get_close_matches(name, table.columns, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'?  " if close else ""
    raise DataError(
        f"there is no column '{name}'",
        where=table.where,
        help=f"{hint}choose with {option}: {names}",
    )


def spelled(table: Table, name: str, option: str) -> list[str]:
    """Return the texts of a column; whole numbers are spelled in digits.

    Args:
        table: The data.
        name: Of the column.
        option: What chooses it on the command line.

    Raises:
        DataError: If it holds something else, or nothing in some row.
    """
    return [_spelled(value, row, table, name, option) for row, value in _rows(table, name)]


def _rows(table: Table, name: str) -> Sequence[tuple[int, Any]]:
    return list(enumerate(table.columns[name], start=1))


def _spelled(value: Any, row: int, table: Table, name: str, option: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, str) and value.strip():
        return value
    empty = value is None or isinstance(value, str)
    what = "nothing" if empty else f"a {type(value).__name__}"
    raise DataError(
        f"column '{name}' must hold text, but has {what} in row {row}",
        where=table.where,
        help=f"choose another column with {option}: {', '.join(table.columns)}",
    )


def _pairs(table: Table, source: str | None, target: str | None) -> Pairs:
    read = column(table, source, SOURCE_NAMES, "source", "--text-column")
    written = column(table, target, TARGET_NAMES, "target", "--label-column")
    if read == written:
        raise DataError(
            f"column '{read}' cannot be source and target at once",
            where=table.where,
            help=f"choose another with --label-column: {', '.join(table.columns)}",
        )
    return Pairs(
        sources=spelled(table, read, "--text-column"),
        targets=spelled(table, written, "--label-column"),
    )
