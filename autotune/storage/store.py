"""The one writer of a study database. Every write is a short transaction of its own.

Only the driver of a run writes; trials report to it. What is written is never taken back: a trial
that an interrupted run left keeps its number, is repeated under it, and an event says so.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from sqlalchemy import Select, delete, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from autotune.core.errors import StorageError
from autotune.core.knob import Knob
from autotune.core.record import TrialRecord
from autotune.core.workload import Metric, RunSpec
from autotune.storage.driver import LEASE_SECONDS, Driver
from autotune.storage.engine import WRITES, connect, said
from autotune.storage.migrate import migrate
from autotune.storage.models import INTERRUPTED, RUNNING, ArtifactRow, KnobRow, RunRow, TrialRow
from autotune.storage.reader import Clock, Reader, driver_of
from autotune.storage.rows import (
    describe_outcome,
    describe_trial,
    environment_rows,
    event_row,
    knob_rows,
    outcome_rows,
    run_row,
)
from autotune.trial.spec import Event


class Store(Reader):
    """A study database that is written; reads as `Reader` does."""

    @classmethod
    def open(cls, where: str | Path, *, create: bool = True, clock: Clock = time.time) -> Self:
        """Open a study database for writing; one of an older version is upgraded in place.

        Args:
            where: A file, a run folder, or an SQLAlchemy URL.
            create: Whether to create the file and the tables where there are none.
            clock: Unix time; a runner's, if it simulates.

        Raises:
            StorageError: If it is missing, holds no study, or cannot be written.
            NewerDatabase: If a newer autotune wrote it; nothing was changed.
        """
        engine = connect(where, "create" if create else "write")
        try:
            migrate(engine, create=create)
        except BaseException:
            engine.dispose()
            raise
        return cls(engine, clock)

    def start_run(self, spec: RunSpec) -> None:
        """Record that a run starts, driven by this process.

        Raises:
            StorageError: If there is a run of that name.
        """
        with self._writing() as session:
            row = run_row(spec, Driver.current(), self.clock())
            session.add(row)
            try:
                session.flush()
            except IntegrityError as error:
                raise StorageError(
                    f"there is a run '{spec.name}' in '{self.where}'",
                    help=f"autotune resume {spec.name}   to continue it\nor choose another --name",
                ) from error
            session.add_all(environment_rows(row.id, spec))

    def resume_run(self, spec: RunSpec) -> list[int]:
        """Record that a run goes on, driven by this process, perhaps with more trials or time.

        Args:
            spec: What the run depends on from now on; an event keeps what it was before.

        Returns:
            Numbers of every trial that was interrupted and is to be repeated.

        Raises:
            UnknownName: If there is no run of that name.
            StorageError: If the run is still driven by another process.
        """
        with self._writing() as session:
            row = self._take_over(session, spec.name)
            before = {"spec": json.loads(row.spec)} if row.fingerprint != spec.fingerprint else {}
            event = Event(trial=-1, kind="resumed", data=before, time=self.clock())
            session.add(event_row(row.id, event))
            row.spec, row.fingerprint = json.dumps(spec.to_json()), spec.fingerprint
            return self._interrupted(session, spec.name)

    def add_trial(self, run: str, record: TrialRecord, knobs: Iterable[Knob]) -> None:
        """Record that a trial was submitted.

        Args:
            run: Name of the run.
            record: The trial; a number that an interrupted run left is used again.
            knobs: Every knob of the space.

        Raises:
            StorageError: If that trial is there and was not interrupted.
        """
        knobs = tuple(knobs)
        with self._writing() as session:
            owner = self._beat(session, run)
            row = session.scalar(_trial(owner, record.number))
            if row is None:
                row = TrialRow(run_id=owner.id)
                session.add(row)
            elif row.status != INTERRUPTED:
                raise StorageError(
                    f"trial {record.number} of run '{run}' is recorded as {row.status}",
                    help="only a trial that was interrupted is repeated under its number",
                )
            describe_trial(row, record, knobs)
            session.flush()
            session.execute(delete(KnobRow).where(KnobRow.trial_id == row.id))
            session.add_all(knob_rows(row.id, record.config, knobs))

    def finish_trial(self, run: str, record: TrialRecord, metric: Metric) -> None:
        """Record how a trial ended and everything that it measured.

        Args:
            run: Name of the run.
            record: The trial with its outcome.
            metric: The metric that is searched for.

        Raises:
            StorageError: If the trial is not running.
        """
        if record.outcome is None:
            raise ValueError(f"trial {record.number} has no outcome to record")
        with self._writing() as session:
            row = session.scalar(_trial(self._beat(session, run), record.number))
            if row is None or row.status != RUNNING:
                raise StorageError(
                    f"trial {record.number} of run '{run}' cannot be finished: "
                    + ("it was never started" if row is None else f"it is {row.status}")
                )
            describe_outcome(row, record, record.outcome, metric)
            session.add_all(outcome_rows(row.id, record.outcome))

    def interrupt_trial(self, run: str, number: int) -> None:
        """Mark a running trial as interrupted: it is to be repeated when the run is resumed."""
        with self._writing() as session:
            self._interrupt(session, self._beat(session, run), number)

    def set_front(self, run: str, numbers: Collection[int]) -> None:
        """Record which trials are on the front; all others are not."""
        with self._writing() as session:
            owner = self._beat(session, run)
            mine = update(TrialRow).where(TrialRow.run_id == owner.id)
            joined = TrialRow.number.in_(numbers)
            session.execute(mine.where(TrialRow.on_front, ~joined).values(on_front=False))
            session.execute(mine.where(~TrialRow.on_front, joined).values(on_front=True))

    def record_event(self, run: str, event: Event) -> None:
        """Record something that a trial reported; a trial below 0 stands for the run itself."""
        with self._writing() as session:
            session.add(event_row(self._beat(session, run).id, event))

    def add_artifact(self, run: str, kind: str, path: str | Path, trial: int | None = None) -> None:
        """Record a file that a trial, or without a number the run, left."""
        with self._writing() as session:
            owner = self._beat(session, run)
            session.add(ArtifactRow(run_id=owner.id, trial=trial, kind=kind, path=str(path)))

    def finish_run(self, run: str, status: str) -> None:
        """Record that a run ended: `done`, `interrupted` or `failed`.

        Trials that still run in it are marked as interrupted.
        """
        with self._writing() as session:
            row = self._beat(session, run)
            self._interrupt(session, row)
            row.status, row.finished = status, self.clock()

    def heartbeat(self, run: str) -> None:
        """Say that the driver is at work. Every other write says so too.

        A driver on another host counts as gone after `LEASE_SECONDS` without a write.
        """
        with self._writing() as session:
            self._beat(session, run)

    def interrupt_leftovers(self, run: str) -> list[int]:
        """Take a run over from a driver that is gone, and mark what it left running.

        Returns:
            Numbers of every trial that was interrupted and is to be repeated.

        Raises:
            StorageError: If the run is still driven by another process.
        """
        with self._writing() as session:
            self._take_over(session, run)
            return self._interrupted(session, run)

    @contextmanager
    def _writing(self) -> Iterator[Session]:
        engine = self.engine.execution_options(**{WRITES: True})
        with said(self.where), Session(engine) as session, session.begin():
            yield session

    def _beat(self, session: Session, run: str) -> RunRow:
        row = self._run(session, run)
        now = self.clock()
        if row.status == RUNNING:
            row.elapsed += max(0.0, now - row.heartbeat)
        row.heartbeat = now
        return row

    def _take_over(self, session: Session, run: str) -> RunRow:
        driver, now = Driver.current(), self.clock()
        row = self._run(session, run)
        old = driver_of(row)
        if row.status == RUNNING and old != driver and old.alive(row.heartbeat, now):
            raise StorageError(
                f"run '{run}' is being driven by process {old.pid} on {old.host}",
                help=f"wait until it ends, or stop it: kill -INT {old.pid}\n"
                f"a driver on another host counts as gone {LEASE_SECONDS:.0f} s after it died",
            )
        row.driver_pid, row.driver_host, row.driver_born = driver.pid, driver.host, driver.born
        row.status, row.finished, row.heartbeat = RUNNING, None, now
        self._interrupt(session, row)
        return row

    def _interrupt(self, session: Session, run: RunRow, number: int | None = None) -> None:
        """Mark what is running, or only the trial of that number; an event keeps what it was."""
        mine = self._trials(session, run.name).where(TrialRow.status == RUNNING)
        if number is not None:
            mine = mine.where(TrialRow.number == number)
        for trial in session.scalars(mine):
            trial.status, trial.finished = INTERRUPTED, self.clock()
            data = {"started": trial.started, "config": json.loads(trial.config)}
            event = Event(trial=trial.number, kind=INTERRUPTED, data=data, time=trial.finished)
            session.add(event_row(run.id, event))

    def _interrupted(self, session: Session, run: str) -> list[int]:
        mine = self._trials(session, run).where(TrialRow.status == INTERRUPTED)
        return [trial.number for trial in session.scalars(mine)]


def _trial(run: RunRow, number: int) -> Select[TrialRow]:
    return select(TrialRow).where(TrialRow.run_id == run.id, TrialRow.number == number)
