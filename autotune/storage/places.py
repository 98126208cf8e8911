"""Where a run lives: the folder `results/NAME`, and the file or URL of its study database.

    results/NAME/study.db            the study database
    results/NAME/trials/17/log.txt   output of a trial
    results/NAME/trials/17/seed-3.txt       the same, of a repeat with another seed
    results/NAME/trials/17/timeline.json    its memory over one step, rehearsed; of the best ones
    results/NAME/trials/17/snapshot.pickle  what CUDA's allocator saw, where one was asked for
    results/NAME/cache/              prepared data

Nothing is ever overwritten: a name that is taken is an error that says how to go on.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from autotune.core.errors import BadValue, StorageError

DATABASE = "study.db"
SqliteMode = Literal["rwc", "rw", "ro"]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # of a path, which has one slash left
_RESERVED = frozenset({"latest"})


def study_path(folder: Path) -> Path:
    """Return the study database of a run folder."""
    return folder / DATABASE


def log_path(folder: Path, trial: int) -> Path:
    """Return the file that gets the output of a trial."""
    return folder / "trials" / str(trial) / "log.txt"


def seed_log_path(folder: Path, trial: int, seed: int) -> Path:
    """Return the file that holds the output of a trial's repeat with another seed."""
    return folder / "trials" / str(trial) / f"seed-{seed}.txt"


def timeline_path(folder: Path, trial: int) -> Path:
    """Return the file that holds a trial's memory over one step."""
    return folder / "trials" / str(trial) / "timeline.json"


def snapshot_path(folder: Path, trial: int) -> Path:
    """Return the file that holds torch's own snapshot of a trial's CUDA memory."""
    return folder / "trials" / str(trial) / "snapshot.pickle"


def cache_path(folder: Path) -> Path:
    """Return the folder of a run's prepared data."""
    return folder / "cache"


def sqlite_path(where: str | Path) -> Path | None:
    """Return the file that `where` names, or None if it is the URL of a database server.

    Args:
        where: A file, a run folder, `sqlite:///FILE`, or another SQLAlchemy URL.

    Raises:
        StorageError: If it names a SQLite database in memory, which would lose the run.
    """
    text = str(where)
    if "://" in text:
        dialect, _, rest = text.partition("://")
        if dialect.partition("+")[0] != "sqlite":
            return None
        text = rest.removeprefix("/").partition("?")[0]
        if text in ("", ":memory:"):
            raise StorageError(
                f"'{where}' keeps the study in memory, where it would be lost",
                help="name a file: sqlite:///study.db",
            )
    path = Path(text)
    return study_path(path) if path.is_dir() else path


def sqlite_uri(path: Path, mode: SqliteMode) -> str:
    """Return the URI that opens a SQLite file, creating it (`rwc`), writing (`rw`) or not (`ro`).

    To read in a folder that cannot be written, the file is opened as immutable: SQLite would put
    the shared memory of WAL mode beside it, unless another process has put it there already.
    """
    uri = f"file:{quote(str(path.absolute()))}?mode={mode}"
    if mode != "ro" or os.access(path.parent, os.W_OK) or Path(f"{path}-wal").exists():
        return uri
    return f"{uri}&immutable=1"


def results_path(results: str | Path) -> Path:
    """Return the folder that holds all runs.

    Raises:
        BadValue: If it is a URL, which would become a folder of that name.
    """
    if scheme := _SCHEME.match(str(results)):
        raise BadValue(
            f"runs lie in a folder, and '{scheme[0]}…' is a URL",
            where="--results",
            help="name a folder, which may be on a file system that machines share: --results DIR\n"
            "a study can be on a server: --storage postgresql+psycopg://USER@HOST/DATABASE",
        )
    return Path(results)


def new_run_folder(
    results: str | Path,
    name: str | None = None,
    *,
    objective: str = "run",
    now: float | None = None,
) -> Path:
    """Create the folder of a new run.

    Args:
        results: The folder that holds all runs; created if missing.
        name: Name of the run; by default the objective and the time, such as
            `causal-lm-1124-0935`.
        objective: Used in the default name.
        now: Unix time, used in the default name; by default the clock's.

    Returns:
        The folder `results/NAME`, with `trials/` and `cache/` in it.

    Raises:
        BadValue: If the name cannot be one of a folder, or `results` is none.
        StorageError: If the name is taken, or the folder cannot be created.
    """
    if name is not None:
        _check_name(name)
    root = results_path(results)
    try:
        root.mkdir(parents=True, exist_ok=True)
        folder = _claim(root, name) if name else _claim_free(root, objective, now)
        (folder / "trials").mkdir()
        cache_path(folder).mkdir()
    except OSError as error:
        raise StorageError(
            f"cannot create a run under '{root}': {error.strerror or error}",
            help="name a folder that can be written: --results DIR",
        ) from error
    return folder


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name) or name in _RESERVED:
        raise BadValue(
            f"'{name}' cannot be the name of a run",
            help="use letters, digits, '.', '_' and '-', starting with a letter or digit; "
            "'latest' is taken",
        )


def _claim(root: Path, name: str) -> Path:
    folder = root / name
    try:
        folder.mkdir()
    except FileExistsError as error:
        raise StorageError(
            f"'{folder}' exists, and results are never overwritten",
            help=f"autotune resume {name}   to continue it\nor choose another --name",
        ) from error
    return folder


def _claim_free(root: Path, objective: str, now: float | None) -> Path:
    stamp = time.strftime("%m%d-%H%M", time.localtime(now))
    stem = f"{objective.replace('_', '-')}-{stamp}"
    taken = 1
    while True:
        folder = root / (stem if taken == 1 else f"{stem}-{taken}")
        if not folder.exists():
            return _claim(root, folder.name)
        taken += 1
