"""What an export needs of an objective: its texts as they are split, its model, its tokenizer.

A training script that runs without autotune reads texts and a configuration, not arrays in a cache.
Here they are written as files: JSON lines for the texts, the folder of transformers for the rest.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from autotune.core.workload import Workload
from autotune.knobs.stages import LoadPlan

from .causal_lm import CausalLM
from .columns import HELD_OUT_SHARE, LABEL_NAMES, TEXT_NAMES, held_out
from .files import READERS, read_data
from .scratch import restore_tokenizer
from .streams import HELD_OUT_SHARE as HELD_OUT_DOCUMENTS
from .streams import MANY
from .task import Task
from .text_classification import TextClassification

LINES = (".csv", ".tsv", ".jsonl", ".ndjson")
"""Types of files that a script reads in a few lines."""

Rows = list[dict[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingredients:
    """What a training script starts from.

    Attributes:
        weights: Name on the hub or folder of the weights; None if they start at random.
        trust: Whether code that comes with the model may run.
        pad: Token to fill up with.
        classes: Names of the classes, in order; empty for a language model.
        text: Column of the text.
        label: Column of the label; empty for a language model.
        data: The user's own file, if a script can read and split it as it is; else None.
        held_share: Share of it that is held out.
        rows: Rows to train on and to evaluate on, in order.
        config: The model's configuration.
        tokenizer: Its tokenizer; None if bytes are tokens.
    """

    weights: str | None
    trust: bool
    pad: int
    classes: tuple[str, ...]
    text: str
    label: str
    data: str | None
    held_share: float
    rows: tuple[Rows, Rows]
    config: Any
    tokenizer: PreTrainedTokenizerBase | None

    def write(self, folder: Path) -> None:
        """Write configuration and tokenizer, and the texts if there is no file of the user's."""
        self.config.save_pretrained(folder / "model")
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder / "model")
        if self.data is None:
            for name, rows in zip(("train", "validation"), self.rows, strict=True):
                lines = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
                (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")


def language(workload: Workload, cache: Path) -> Ingredients:
    """Return the ingredients of a language model.

    Raises:
        AutotuneError: If model or data cannot be prepared.
    """
    task = CausalLM(workload, cache)
    task.describe()
    corpus = task.corpus()
    rows = tuple([{"text": text} for text in part] for part in (corpus.train, corpus.held))
    column = _column(workload, workload.text_column, TEXT_NAMES)

    def split(table: Rows) -> tuple[Rows, Rows] | None:
        if len(table) < MANY:
            return None
        kept, held = held_out(len(table), HELD_OUT_DOCUMENTS)
        return [table[i] for i in sorted(kept)], [table[i] for i in held]

    return _ingredients(task, (rows[0], rows[1]), (column,), split, HELD_OUT_DOCUMENTS)


def classes(workload: Workload, cache: Path) -> Ingredients:
    """Return the ingredients of a text classifier.

    Raises:
        AutotuneError: If model or data cannot be prepared.
    """
    task = TextClassification(workload, cache)
    task.describe()
    corpus = task.corpus()
    rows = tuple(
        [
            {"text": text, "label": label}
            for text, label in zip(part.texts, part.labels, strict=True)
        ]
        for part in (corpus.train, corpus.held)
    )
    columns = (
        _column(workload, workload.text_column, TEXT_NAMES),
        _column(workload, workload.label_column, LABEL_NAMES),
    )

    def split(table: Rows) -> tuple[Rows, Rows] | None:
        kept, held = held_out(len(table))
        return [table[i] for i in kept], [table[i] for i in held]

    return _ingredients(task, (rows[0], rows[1]), columns, split, HELD_OUT_SHARE)


def tokenizer_of(objective: object) -> PreTrainedTokenizerBase | None:
    """Return the tokenizer that an objective prepared its texts with; None if there is none."""
    if not isinstance(objective, Task):
        return None
    made = objective.prepared.facts.get("tokenizer")
    if made is not None:
        return restore_tokenizer(made)
    source = objective.source
    return source.tokenizer() if source.folder and source.has_tokenizer else None


def _ingredients(
    task: Task,
    rows: tuple[Rows, Rows],
    columns: tuple[str, ...],
    split: Callable[[Rows], tuple[Rows, Rows] | None],
    share: float,
) -> Ingredients:
    """Put together what was found; the user's file counts only if it gives the same rows."""
    workload, facts, source = task.workload, task.prepared.facts, task.source
    model: Any = task.build(LoadPlan(shapes_only=True), workload.seed)
    names = ("text", "label")[: len(columns)]
    own = _same_rows(workload.data, columns, names, split, rows)
    weights = None
    if source.pretrained:
        named = workload.model if workload.model and not Path(workload.model).exists() else None
        weights = named or source.folder
    return Ingredients(
        weights=weights,
        trust=source.trust,
        pad=int(facts.get("pad", 0)),
        classes=tuple(facts.get("classes", ())),
        text=columns[0] if own else "text",
        label=(columns[1] if own else "label") if len(columns) > 1 else "",
        data=str(Path(workload.data or "").expanduser().absolute()) if own else None,
        held_share=share,
        rows=rows,
        config=model.config,
        tokenizer=tokenizer_of(task),
    )


def _same_rows(
    data: str | None,
    columns: Sequence[str],
    names: Sequence[str],
    split: Callable[[Rows], tuple[Rows, Rows] | None],
    rows: tuple[Rows, Rows],
) -> bool:
    """Whether reading the user's file line by line and splitting it gives these very rows."""
    path = Path(data or "").expanduser()
    if data is None or not path.is_file() or path.suffix.lower() not in LINES or not all(columns):
        return False
    table = READERS[path.suffix.lower()](path)
    found = [
        {name: str(value) for name, value in zip(names, values, strict=True)}
        for values in zip(*(table.columns[column] for column in columns), strict=True)
    ]
    return split(found) == rows


def _column(workload: Workload, asked: str | None, usual: Sequence[str]) -> str:
    """Return the column that was asked for or has a usual name; empty if neither is there."""
    if workload.data is None:
        return usual[0]
    known = read_data(workload.data).train.columns
    return asked or next((name for name in usual if name in known), "")
