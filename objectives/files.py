"""The user's own data: a file, a folder of files, or a folder saved by `datasets`.

Everything becomes a `Table` of plain Python lists. Whatever is wrong is said with its place in the
file, down to the line where the format has lines. A folder's files are told apart by name:
`validation`, `valid`, `dev`, `eval` or else `test` are for evaluation, all others for training.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autotune.core.errors import DataError

VALIDATION_NAMES = ("validation", "valid", "val", "dev", "eval", "test")
"""Names of parts to evaluate on, the best first."""

_SAVED = ("dataset_dict.json", "state.json")
_CSV_FIELD_LIMIT = 2**24


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Columns of equal length.

    Attributes:
        columns: Values by column name, in the order of the file.
        where: The file or folder they came from.
        plain: Whether it is plain text, which has no columns of its own.
    """

    columns: Mapping[str, Sequence[Any]]
    where: str
    plain: bool = False

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Splits:
    """Data to train on and, if the user separated it, data to evaluate on."""

    train: Table
    validation: Table | None = None


def read_data(data: str) -> Splits:
    """Read a file or folder.

    Args:
        data: Path, as typed.

    Raises:
        DataError: If it is missing, empty, broken or of an unknown type.
    """
    path = Path(data).expanduser()
    if path.is_file():
        return Splits(train=_read_file(path))
    if not path.is_dir():
        raise DataError(
            f"there is no file or folder '{data}'",
            where=str(path.absolute()),
            help=f"--data takes a file ({', '.join(READERS)}) or a folder of such files",
        )
    if any((path / name).is_file() for name in _SAVED):
        return _read_saved(path)
    return _read_folder(path)


def _read_folder(folder: Path) -> Splits:
    """Read a folder of files; plain text counts only where there are no tables."""
    visible = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(p.startswith(".") for p in path.relative_to(folder).parts)
    ]
    files = [path for path in visible if path.suffix.lower() in READERS]
    files = [path for path in files if READERS[path.suffix.lower()] is not _read_text] or files
    if not files:
        found = "it is empty" if not visible else f"it holds {_some(p.name for p in visible)}"
        raise DataError(
            f"the folder has no file that can be read: {found}",
            where=str(folder),
            help=f"put {', '.join(READERS)} files into it",
        )
    parts: dict[str, list[Path]] = {}
    for path in files:
        parts.setdefault(_part(path.relative_to(folder)), []).append(path)
    training = parts.pop("train", [])
    if not training:
        raise DataError(
            f"the folder has files to evaluate on ({_some(p.name for p in files)}), "
            "but none to train on",
            where=str(folder),
            help="add a file with 'train' in its name",
        )
    held_out = next((parts[name] for name in VALIDATION_NAMES if name in parts), None)
    return Splits(
        train=_joined([_read_file(path) for path in training], folder),
        validation=_joined([_read_file(path) for path in held_out], folder) if held_out else None,
    )


def _part(path: Path) -> str:
    """Tell by the beginning of its name, or of its folder's, which part a file belongs to."""
    for piece in (path.stem, *path.parts[:-1]):
        for name in VALIDATION_NAMES:
            if piece.lower().replace("-", "_").replace(".", "_").split("_")[0] == name:
                return name
    return "train"


def _joined(tables: Sequence[Table], folder: Path) -> Table:
    first = tables[0]
    for table in tables[1:]:
        if set(table.columns) != set(first.columns):
            raise DataError(
                f"files of one folder must have the same columns, but this one has "
                f"{', '.join(table.columns)} and {Path(first.where).name} has "
                f"{', '.join(first.columns)}",
                where=table.where,
                help="put files of another kind into another folder",
            )
    columns = {
        name: [value for table in tables for value in table.columns[name]] for name in first.columns
    }
    where = first.where if len(tables) == 1 else str(folder)
    return Table(columns=columns, where=where, plain=first.plain)


def _read_saved(folder: Path) -> Splits:
    """Read what `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote."""
    from datasets import Dataset, load_from_disk

    with _readable(folder, "a folder saved by datasets"):
        saved = load_from_disk(str(folder))
    if isinstance(saved, Dataset):
        return Splits(train=_saved_table(saved, folder))
    names = list(saved)
    held_out = next((name for name in VALIDATION_NAMES if name in names), None)
    training = [name for name in names if name not in VALIDATION_NAMES]
    if not training:
        raise DataError(
            f"the saved dataset has the parts {', '.join(names)}, but none to train on",
            where=str(folder),
            help="save it with a part called 'train'",
        )
    name = "train" if "train" in training else training[0]
    return Splits(
        train=_saved_table(saved[name], folder / name),
        validation=_saved_table(saved[held_out], folder / held_out) if held_out else None,
    )


def _saved_table(saved: Any, where: Path) -> Table:
    """Take the columns of a saved dataset; classes become their names."""
    columns = {name: list(saved[name]) for name in saved.column_names}
    for name, feature in saved.features.items():
        classes = getattr(feature, "names", None)
        if classes:
            columns[name] = [
                classes[value] if value is not None and 0 <= value < len(classes) else None
                for value in columns[name]
            ]
    return _checked(Table(columns=columns, where=str(where)))


def _read_file(path: Path) -> Table:
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"'{path.suffix or path.name}' is not a type of data that can be read",
            where=str(path),
            help=f"supported: {', '.join(READERS)}, a folder of such files, "
            "or a folder written by save_to_disk of datasets",
        )
    if path.stat().st_size == 0:
        raise DataError("the file is empty", where=str(path))
    return _checked(reader(path))


def _checked(table: Table) -> Table:
    if not len(table):
        raise DataError("there are no rows in it", where=table.where)
    return table


def _read_csv(path: Path) -> Table:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    limit = csv.field_size_limit(_CSV_FIELD_LIMIT)
    reader = csv.reader(io.StringIO(_decoded(path), newline=""), delimiter=delimiter, strict=True)
    try:
        header = next(reader, [])
        rows = list(_csv_rows(reader, header, path))
    except csv.Error as error:
        raise DataError(
            f"this line is not CSV: {error}", where=f"{path}:{reader.line_num}"
        ) from error
    finally:
        csv.field_size_limit(limit)
    return Table(
        columns={name: [row[i] for row in rows] for i, name in enumerate(header)}, where=str(path)
    )


def _csv_rows(reader: Any, header: Sequence[str], path: Path) -> Iterator[list[str]]:
    for row in reader:
        if row and len(row) != len(header):
            raise DataError(
                f"this line has {len(row)} fields, but the header has {len(header)}: "
                f"{', '.join(header)}",
                where=f"{path}:{reader.line_num}",
                help='quote fields that hold the separator or a line break: "like, this"',
            )
        if row:
            yield row


def _read_json(path: Path) -> Table:
    """Read JSON lines, or one JSON array of objects."""
    text = _decoded(path)
    if text.lstrip().startswith("["):
        rows = [(1, row) for row in _parsed(text, path, 1)]
    else:
        lines = enumerate(text.split("\n"), start=1)
        rows = [(number, _parsed(line, path, number)) for number, line in lines if line.strip()]
    names: dict[str, None] = {}
    for number, row in rows:
        if not isinstance(row, dict):
            raise DataError(
                f"every line must be an object, but this one is a {type(row).__name__}",
                where=f"{path}:{number}",
                help='write lines like {"text": "…", "label": "…"}',
            )
        names.update(dict.fromkeys(row))
    columns = {name: [row.get(name) for _, row in rows] for name in names}
    return Table(columns=columns, where=str(path))


def _parsed(text: str, path: Path, line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"this line is not JSON: {error.msg}",
            where=f"{path}:{line + error.lineno - 1}:{error.colno}",
            context=[text.splitlines()[error.lineno - 1][:100]],
            help="JSON lines hold one object a line, without commas between lines",
        ) from error


def _read_parquet(path: Path) -> Table:
    import pyarrow.parquet

    with _readable(path, "Parquet"):
        table = pyarrow.parquet.read_table(path)
    return Table(columns=table.to_pydict(), where=str(path))


def _read_text(path: Path) -> Table:
    text = _decoded(path)
    return Table(columns={"text": [text] if text.strip() else []}, where=str(path), plain=True)


READERS: dict[str, Callable[[Path], Table]] = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".jsonl": _read_json,
    ".ndjson": _read_json,
    ".json": _read_json,
    ".parquet": _read_parquet,
    ".txt": _read_text,
    ".md": _read_text,
}
"""What reads a file, by its suffix."""


def _decoded(path: Path) -> str:
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"the file is not UTF-8: byte 0x{content[error.start]:02x} in line {line}",
            where=f"{path}:{line}",
            help=f"convert it: iconv -f latin1 -t utf-8 {path.name} > utf8-{path.name}",
        ) from error


@contextmanager
def _readable(path: Path, kind: str) -> Iterator[None]:
    """Turn what a library raises over a broken file into a DataError."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError) as error:  # Arrow's errors are ValueErrors
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(f"it cannot be read as {kind}: {reason}", where=str(path)) from error


def _some(names: Iterator[str] | Sequence[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")
