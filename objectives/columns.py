"""Which column of the user's data is the text, which is the label, and what they may hold.

The defaults are the names that most data sets use. What a column holds is checked row by row here,
so that training never meets a value that is not what it should be.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from autotune.core.errors import DataError

from .files import Splits, Table

TEXT_NAMES = ("text", "sentence", "content")
LABEL_NAMES = ("label", "labels")
HELD_OUT_SHARE = 0.15
"""Share of the data that is held out where the user separated none."""

_SPLIT_SEED = 0  # the same for all runs: scores of runs with other seeds stay comparable


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """Texts with a class each.

    Attributes:
        texts: The texts.
        labels: Name of the class of each text.
    """

    texts: Sequence[str]
    labels: Sequence[str]

    def __len__(self) -> int:
        return len(self.texts)

    def pick(self, places: Sequence[int]) -> Labelled:
        """Return the rows at these places, in their order."""
        return Labelled(
            texts=[self.texts[place] for place in places],
            labels=[self.labels[place] for place in places],
        )


def labelled(table: Table, text: str | None, label: str | None) -> Labelled:
    """Take texts and labels from a table.

    Args:
        table: The data.
        text: Column of the text, or None to choose.
        label: Column of the label, or None to choose.

    Raises:
        DataError: If a column is missing or holds something else.
    """
    if table.plain:
        raise DataError(
            "plain text has no labels",
            where=table.where,
            help="give a table (.csv, .jsonl, .parquet) with a column for the label",
        )
    label_column = _chosen(table, label, LABEL_NAMES, "label")
    return Labelled(texts=texts(table, text, but=label_column), labels=_labels(table, label_column))


def texts(table: Table, asked: str | None, *, but: str | None = None) -> list[str]:
    """Return the texts of a table.

    Args:
        table: The data.
        asked: Their column, or None to choose: one of `TEXT_NAMES`, else the only one of text.
        but: A column that is not to be chosen.

    Raises:
        DataError: If the column is missing or holds something else.
    """
    column = asked
    if column is None and not any(name in table.columns for name in TEXT_NAMES):
        candidates = [name for name in table.columns if name != but and _is_text(table, name)]
        column = candidates[0] if len(candidates) == 1 else None
    column = _chosen(table, column, TEXT_NAMES, "text")
    values = table.columns[column]
    for row, value in enumerate(values, start=1):
        if not isinstance(value, str):
            what = "nothing" if value is None else f"a {type(value).__name__}"
            raise DataError(
                f"column '{column}' must hold text, but has {what} in row {row}",
                where=table.where,
                help=_other_column(table, column, "text"),
            )
    if not _is_text(table, column):
        raise DataError(
            f"column '{column}' holds numbers, not text",
            where=table.where,
            help=_other_column(table, column, "text"),
        )
    return list(values)


def classes_of(*parts: Labelled, where: str) -> list[str]:
    """Return the names of all classes in a fixed order: numbers by value, others by alphabet.

    Raises:
        DataError: If there is one class only, or nearly every text has a class of its own.
    """
    names = {label for part in parts for label in part.labels}
    count = sum(len(part) for part in parts)
    if len(names) < 2:
        raise DataError(
            f"every text has the same label, '{min(names)}', so there is nothing to learn",
            where=where,
            help="choose another column with --label-column",
        )
    if len(names) > max(2, count // 2):
        raise DataError(
            f"the label column has {len(names)} different values in {count} rows: "
            "these are not classes",
            where=where,
            help="choose another column with --label-column",
        )
    numeric = all(_is_number(name) for name in names)
    return sorted(names, key=lambda name: (float(name) if numeric else 0.0, name))


def held_out(count: int, share: float = HELD_OUT_SHARE) -> tuple[list[int], list[int]]:
    """Split places at random, the same way always.

    Returns:
        Places to train on and places to evaluate on; at least one of each from 2 places on.
    """
    order = np.random.default_rng(_SPLIT_SEED).permutation(count)
    held = max(1, round(share * count))
    return order[held:].tolist(), order[:held].tolist()


def split_labelled(
    splits: Splits, text: str | None, label: str | None
) -> tuple[Labelled, Labelled]:
    """Return what to train on and what to evaluate on, in random but fixed order.

    Raises:
        DataError: As `labelled`.
    """
    train = labelled(splits.train, text, label)
    if splits.validation is None:
        training, held = held_out(len(train))
        return train.pick(training), train.pick(held)
    validation = labelled(splits.validation, text, label)
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(validation))
    return train, validation.pick(order.tolist())


def _chosen(table: Table, asked: str | None, usual: Sequence[str], role: str) -> str:
    """Return the name of a column that exists."""
    name = asked or next((name for name in usual if name in table.columns), None)
    if name is None:
        raise DataError(
            f"which column is the {role}? There is none called {' or '.join(usual)}",
            where=table.where,
            help=_other_column(table, "", role),
        )
    if name not in table.columns:
        raise DataError(
            f"there is no column '{name}'",
            where=table.where,
            help=_other_column(table, name, role),
        )
    return name


def _other_column(table: Table, name: str, role: str) -> str:
    others = [column for column in table.columns if column != name]
    close = difflib.get_close_matches(name, others, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'?  " if close else ""
    return f"{hint}choose with --{role}-column: {', '.join(table.columns)}"


def _is_text(table: Table, column: str) -> bool:
    values = table.columns[column]
    return all(isinstance(value, str) for value in values) and not all(map(_is_number, values))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _labels(table: Table, column: str) -> list[str]:
    return [_label(value, row, column, table) for row, value in enumerate(table.columns[column], 1)]


def _label(value: Any, row: int, column: str, table: Table) -> str:
    """Spell a label; whole numbers lose the `.0` that missing values elsewhere gave them."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str | bool | int) and value != "":
        return str(value)
    what = "nothing" if value in (None, "") else f"{value!r}"
    raise DataError(
        f"column '{column}' must hold words or whole numbers, but has {what} in row {row}",
        where=table.where,
        help=_other_column(table, column, "label"),
    )
