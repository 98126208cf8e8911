"""A run as users hold it: its trials, its front, and the ones worth looking at.

A `Run` is what had been recorded when it was opened; open it again to see what came since.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autotune.core.budget import Budget
from autotune.core.domains import Value
from autotune.core.errors import MissingLibrary, StorageError, UnknownName
from autotune.core.outcome import Completed
from autotune.core.pareto import Picks
from autotune.core.pareto import front as pareto_front
from autotune.core.pareto import picks as pareto_picks
from autotune.core.record import TrialRecord
from autotune.core.units import GIB
from autotune.core.workload import Metric, RunSpec
from autotune.storage.places import (
    DATABASE,
    log_path,
    new_run_folder,
    results_path,
    sqlite_uri,
    study_path,
)

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["LATEST", "Run", "find_run", "new_run_folder"]

LATEST = "latest"
"""Names the run that was started last, as does no name at all."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Run:
    """A search and everything that it found.

    Attributes:
        name: Its name.
        folder: Its folder under the results.
        spec: What it depends on.
        status: `running`, `done`, `interrupted` or `failed`.
        started: Unix time at which it was started.
        elapsed: Seconds in which it was worked at.
        records: Every trial, by number.
        database: File or URL of its study database.
    """

    name: str
    folder: Path
    spec: RunSpec
    status: str
    started: float
    elapsed: float
    records: tuple[TrialRecord, ...]
    database: str
    _counts: Mapping[str, int] = field(compare=False)
    _knob_values: Mapping[int, Mapping[str, Value]] = field(compare=False)

    @classmethod
    def open(
        cls,
        name_or_path: str | Path | None = None,
        results: str | Path = "results",
        storage: str | None = None,
    ) -> Run:
        """Open a run.

        Args:
            name_or_path: A run, its folder or its database; None or `latest` for the run that was
                started last.
            results: The folder that holds all runs.
            storage: URL of the database that holds the run, if that is not its folder's.

        Raises:
            UnknownName: If there is no such run.
            StorageError: If there is no run at all, or it cannot be read.
            BadValue: If `results` is a URL.
        """
        root = results_path(results)
        if storage is not None:
            return _load(storage, None if name_or_path is None else str(name_or_path), root)
        folder = _find_folder(name_or_path, root)
        return _load(study_path(folder), None, folder.parent, folder)

    @property
    def metric(self) -> Metric:
        """The metric that is searched for."""
        return self.spec.facts.metric

    @property
    def budget(self) -> Budget:
        """What a trial may need."""
        return Budget(total_bytes=self.spec.budget_bytes, headroom=self.spec.headroom)

    @property
    def trials(self) -> tuple[TrialRecord, ...]:
        """Every trial, by number; the same as `records`."""
        return self.records

    def front(self) -> list[TrialRecord]:
        """Return the feasible trials that no other beats in both accuracy and memory."""
        return pareto_front(self.records, self.metric)

    def picks(self) -> Picks:
        """Return the trials of the front that are worth looking at first."""
        return pareto_picks(self.records, self.metric)

    def counts(self) -> dict[str, int]:
        """Return how many trials ended how, or are `running` or `interrupted`."""
        return dict(self._counts)

    def knob_values(self, number: int) -> dict[str, Value]:
        """Return the value of every knob of the space in a trial, neutral ones too."""
        return dict(self._knob_values[self.trial(number).number])

    def log(self, number: int) -> Path:
        """Return the file that holds the output of a trial."""
        return log_path(self.folder, number)

    def trial(self, number: int | str) -> TrialRecord:
        """Return one trial.

        Raises:
            UnknownName: If there is no trial of that number.
        """
        for record in self.records:
            if str(record.number) == str(number):
                return record
        known = f"its trials are 0 to {self.records[-1].number}" if self.records else "it has none"
        raise UnknownName(f"run '{self.name}' has no trial '{number}'", help=known)

    def __getitem__(self, number: int | str) -> TrialRecord:
        return self.trial(number)

    def __len__(self) -> int:
        return len(self.records)

    def __repr__(self) -> str:
        ends = ", ".join(f"{count} {status}" for status, count in sorted(self._counts.items()))
        return f"Run({self.name!r}, {self.status}: {ends or 'no trials'})"

    def _repr_html_(self) -> str:
        """Return the run as notebooks show it."""
        from autotune.storage.notebook import run_html

        return run_html(self)

    def to_pandas(self) -> pd.DataFrame:
        """Return one row per trial: how it ended, scores, memory, and the value of every knob.

        Columns of scores have the metric's name, columns of knobs have `knob.` before it. Memory is
        in GiB.

        Raises:
            MissingLibrary: If pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise MissingLibrary(
                "a data frame needs pandas, which is not installed",
                help="pip install 'autotune-memory[pandas]'",
            ) from error
        rows = [self._row(record) for record in self.records]
        return pd.DataFrame.from_records(rows, index="trial" if rows else None)

    def _row(self, record: TrialRecord) -> dict[str, Any]:
        outcome = record.outcome
        row: dict[str, Any] = {"trial": record.number, "origin": record.origin.value}
        row["status"] = None if outcome is None else outcome.tag
        row |= {"feasible": record.feasible, "on_front": record.on_front}
        if outcome is not None:
            measured = outcome.measurement
            row["seconds"] = outcome.seconds
            row["peak_gib"] = measured.peak_bytes / GIB or None
            row["footprint_gib"] = measured.footprint_bytes / GIB or None
            row["predicted_gib"] = record.rehearsed_bytes / GIB or None
            row["step_seconds"] = measured.step_seconds or None
            row["throughput"] = measured.throughput or None
        if isinstance(outcome, Completed):
            row |= {name: score.value for name, score in record.scores.items()}
        values = self._knob_values.get(record.number, {})
        return row | {f"knob.{name}": value for name, value in values.items()}


def find_run(
    text: str | None, results: str | Path = "results", storage: str | None = None
) -> tuple[Run, int | None]:
    """Open what `RUN`, `RUN/17`, `latest/17` or nothing names: a run, and a trial if one is named.

    Raises:
        UnknownName: If there is no such run or trial.
        StorageError: If there is no run at all, or it cannot be read.
    """
    name, number = text, None
    if text is not None:
        front, _, last = text.rpartition("/")
        # A folder may be called 17, so a path that exists is a run before it is a trial.
        if front and last.isdigit() and not study_path(Path(text)).is_file():
            name, number = front, int(last)
    run = Run.open(name, results, storage)
    if number is not None:
        run.trial(number)
    return run, number


def find_database(name_or_path: str | Path | None, results: str | Path = "results") -> Path:
    """Return the file of a run's study database, without opening it.

    Raises:
        UnknownName: If there is no such run.
        StorageError: If there is no run at all.
    """
    return study_path(_find_folder(name_or_path, Path(results)))


def _load(
    where: str | Path, name: str | None, results: str | Path, folder: Path | None = None
) -> Run:
    from autotune.storage.reader import Reader

    with Reader.open_read_only(where) as reader:
        infos = reader.runs()
        if not infos:
            raise StorageError(
                f"'{where}' holds no run yet", help="start one: autotune run --budget 16GB"
            )
        if name in (None, LATEST):
            name = _own_name([info.name for info in infos], folder)
        info = reader.info(name)
        return Run(
            name=name,
            folder=folder or Path(results) / name,
            spec=reader.spec(name),
            status=info.status,
            started=info.started,
            elapsed=info.elapsed,
            records=tuple(reader.records(name)),
            database=str(where),
            _counts=reader.counts(name),
            _knob_values=reader.knob_values(name),
        )


def _own_name(names: list[str], folder: Path | None) -> str:
    """Return the run of a folder's database: of that name, else (a folder renamed) the latest."""
    return folder.name if folder is not None and folder.name in names else names[-1]


def _find_folder(name_or_path: str | Path | None, results: Path) -> Path:
    if name_or_path is None or str(name_or_path) == LATEST:
        return _latest_folder(results)
    path = Path(name_or_path)
    for folder in (results / path, path, path.parent if path.name == DATABASE else path):
        if study_path(folder).is_file():
            return folder
    known = [folder.name for folder in _folders(results)]
    raise UnknownName.among("run", str(name_or_path), known)


def _folders(results: Path) -> list[Path]:
    return sorted(path.parent for path in results.glob(f"*/{DATABASE}"))


def _latest_folder(results: Path) -> Path:
    started = [(_started(folder), folder) for folder in _folders(results)]
    if not started:
        raise StorageError(
            f"there is no run in '{results}'",
            help="start one: autotune run --budget 16GB\nor name another folder: --results DIR",
        )
    return max(started)[1]


def _started(folder: Path) -> float:
    """Return when a folder's latest run was started; -1 if it has none or cannot be read.

    One broken folder must not stand in the way of the latest good run; opened by name, it says
    what is wrong with it.
    """
    uri = sqlite_uri(study_path(folder), "ro")
    try:
        with closing(sqlite3.connect(uri, uri=True)) as connection:
            (moment,) = connection.execute("SELECT max(started) FROM autotune_run").fetchone()
    except sqlite3.Error:
        return -1.0
    return -1.0 if moment is None else float(moment)
