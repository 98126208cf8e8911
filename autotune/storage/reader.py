"""Reads a study database: runs, specs, trials as records, events, artifacts. Changes nothing."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from sqlalchemy import Engine, Select, inspect, select
from sqlalchemy.orm import Session

from autotune.core.domains import Value
from autotune.core.errors import UnknownName
from autotune.core.record import TrialRecord
from autotune.core.seeds import Repetition
from autotune.core.workload import RunSpec
from autotune.storage.driver import Driver
from autotune.storage.engine import connect, said
from autotune.storage.faults import foreign_database
from autotune.storage.migrate import (
    READ_ALIKE,
    check_known,
    current_version,
    migrate,
    older_database,
    shown,
)
from autotune.storage.models import (
    INTERRUPTED,
    RUNNING,
    ArtifactRow,
    EventRow,
    KnobRow,
    RepeatRow,
    RunRow,
    TrialRow,
)
from autotune.storage.rows import read_event, read_record, read_repeat, read_spec
from autotune.trial.spec import Event

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """How a run stands.

    Attributes:
        name: Its name.
        status: `running`, `done`, `interrupted` or `failed`; a run whose driver is gone is
            interrupted, whatever the driver last wrote.
        started: Unix time.
        finished: Unix time, None while it runs or if its driver was killed.
        elapsed: Seconds in which it was worked at, pauses before a resume not counted.
    """

    name: str
    status: str
    started: float
    finished: float | None
    elapsed: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A file that a trial, or without a number the run, left."""

    trial: int | None
    kind: str
    path: str


class Reader:
    """A study database that is read.

    Args:
        engine: Connections to it; its schema must be the one of this version.
        clock: Unix time.

    Attributes:
        where: How messages name it, without a password.
    """

    def __init__(self, engine: Engine, clock: Clock = time.time) -> None:
        self.engine = engine
        self.clock = clock
        self.where = shown(engine)

    @classmethod
    def open_read_only(cls, where: str | Path) -> Self:
        """Open a study database for reading; nothing is written unless it must be upgraded first.

        A version that reads as this one is left as it is; an older file is upgraded.

        Args:
            where: A file, a run folder, or an SQLAlchemy URL.

        Raises:
            StorageError: If it is missing, holds no study, cannot be read, or has to be upgraded
                on a server.
            NewerDatabase: If a newer autotune wrote it.
        """
        engine = connect(where, "read")
        try:
            with said(shown(engine)), engine.connect() as connection:
                version = current_version(connection)
            if version is None:
                raise foreign_database(shown(engine))
            check_known(version, shown(engine))
            if version not in READ_ALIKE:
                _upgrade(where, engine, version)
        except BaseException:
            engine.dispose()
            raise
        return cls(engine)

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def runs(self) -> list[RunInfo]:
        """Return how every run stands, in the order in which they were started."""
        with self.reading() as session:
            rows = session.scalars(select(RunRow).order_by(RunRow.started, RunRow.id))
            return [self._info(row) for row in rows]

    def info(self, run: str) -> RunInfo:
        """Return how one run stands.

        Raises:
            UnknownName: If there is no such run.
        """
        with self.reading() as session:
            return self._info(self.run_row(session, run))

    def spec(self, run: str) -> RunSpec:
        """Return what a run depends on."""
        with self.reading() as session:
            return read_spec(self.run_row(session, run).spec)

    def records(self, run: str) -> list[TrialRecord]:
        """Return every trial of a run by number, exactly as it was recorded."""
        with self.reading() as session:
            repeats = self._repeats(session, run)
            rows = session.scalars(self._trials(session, run))
            return [read_record(row, repeats.get(row.id, ())) for row in rows]

    def counts(self, run: str) -> dict[str, int]:
        """Return how many trials ended how, or are `running` or `interrupted`."""
        with self.reading() as session:
            row = self.run_row(session, run)
            found = Counter(trial.status for trial in session.scalars(self._trials(session, run)))
            if self._info(row).status != RUNNING and RUNNING in found:
                found[INTERRUPTED] += found.pop(RUNNING)
            return dict(found)

    def knob_values(self, run: str) -> dict[int, dict[str, Value]]:
        """Return the value of every knob of the space, neutral ones too, by trial."""
        query = (
            select(TrialRow.number, KnobRow.knob, KnobRow.value, KnobRow.number)
            .join(KnobRow, KnobRow.trial_id == TrialRow.id)
            .order_by(TrialRow.number)
        )
        values: dict[int, dict[str, Value]] = {}
        with self.reading() as session:
            mine = query.where(TrialRow.run_id == self.run_row(session, run).id)
            for trial, knob, text, number in session.execute(mine):
                values.setdefault(trial, {})[knob] = _value(text, number)
        return values

    def events(self, run: str, trial: int | None = None) -> list[Event]:
        """Return what was reported in a run, or in one of its trials, in order."""
        with self.reading() as session:
            query = select(EventRow).where(EventRow.run_id == self.run_row(session, run).id)
            if trial is not None:
                query = query.where(EventRow.trial == trial)
            return [read_event(row) for row in session.scalars(query.order_by(EventRow.id))]

    def artifacts(self, run: str) -> list[Artifact]:
        """Return the files that a run and its trials left."""
        with self.reading() as session:
            query = select(ArtifactRow).where(ArtifactRow.run_id == self.run_row(session, run).id)
            return [
                Artifact(trial=row.trial, kind=row.kind, path=row.path)
                for row in session.scalars(query.order_by(ArtifactRow.id))
            ]

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """Give a session that reads; errors of the database become `StorageError`."""
        with said(self.where), Session(self.engine) as session:
            yield session

    def run_row(self, session: Session, name: str) -> RunRow:
        """Return the row of a run.

        Raises:
            UnknownName: If there is no such run.
        """
        row = session.scalar(select(RunRow).where(RunRow.name == name))
        if row is None:
            raise UnknownName.among("run", name, session.scalars(select(RunRow.name)))
        return row

    def _trials(self, session: Session, run: str) -> Select[TrialRow]:
        run_id = self.run_row(session, run).id
        return select(TrialRow).where(TrialRow.run_id == run_id).order_by(TrialRow.number)

    def _repeats(self, session: Session, run: str) -> dict[int, list[Repetition]]:
        """Return the repeats of each trial that has some, in the order of seeds."""
        found: dict[int, list[Repetition]] = {}
        if not inspect(session.connection()).has_table(RepeatRow.__tablename__):
            return found  # an older version wrote it, and is only read
        mine = (
            select(RepeatRow)
            .join(TrialRow, TrialRow.id == RepeatRow.trial_id)
            .where(TrialRow.run_id == self.run_row(session, run).id)
            .order_by(RepeatRow.trial_id, RepeatRow.seed)
        )
        for row in session.scalars(mine):
            found.setdefault(row.trial_id, []).append(read_repeat(row))
        return found

    def _info(self, row: RunRow) -> RunInfo:
        gone = row.status == RUNNING and not driver_of(row).alive(row.heartbeat, self.clock())
        return RunInfo(
            name=row.name,
            status=INTERRUPTED if gone else row.status,
            started=row.started,
            finished=row.finished,
            elapsed=row.elapsed,
        )


def driver_of(row: RunRow) -> Driver:
    """Return the process that drives a run, or drove it last."""
    return Driver(pid=row.driver_pid, host=row.driver_host, born=row.driver_born)


def _upgrade(where: str | Path, engine: Engine, version: str) -> None:
    if engine.dialect.name != "sqlite":
        raise older_database(shown(engine), version)
    writer = connect(where, "write")
    try:
        migrate(writer)
    finally:
        writer.dispose()


def _value(text: str, number: float | None) -> Value:
    if number is None:
        return text
    return int(text) if text.lstrip("-").isdigit() else float(text)
