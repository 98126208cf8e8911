"""The one writer of a study database. Every write is a short transaction of its own.

Only the driver of a run writes; trials report to it. What is written is never taken back: a trial
that an interrupted run left keeps its number, is repeated under it, and an event says so. To write
the same thing twice is to write it once, since a connection may break after a transaction was
committed and before its writer heard so.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from sqlalchemy import Engine, Select, delete, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from autotune.core.errors import StorageError
from autotune.core.knob import Knob
from autotune.core.record import TrialRecord
from autotune.core.workload import Metric, RunSpec
from autotune.storage.driver import LEASE_SECONDS, Driver
from autotune.storage.engine import WRITES, connect, said
from autotune.storage.migrate import migrate
from autotune.storage.models import (
    INTERRUPTED,
    PAUSED,
    RUNNING,
    AnatomyRow,
    ArtifactRow,
    EventRow,
    KnobRow,
    PeakRow,
    RepeatRow,
    RungRow,
    RunRow,
    ScoreRow,
    TrialRow,
)
from autotune.storage.reader import Clock, Reader, driver_of
from autotune.storage.rows import (
    describe_mean,
    describe_outcome,
    describe_repeat,
    describe_trial,
    environment_rows,
    event_row,
    knob_rows,
    outcome_rows,
    run_row,
)
from autotune.storage.statements import HEARTBEAT, beat, insert_all, insert_once
from autotune.trial.spec import Event

STOP = "stop"
"""Kind of the event that asks the driver of a run to end it."""


class Store(Reader):
    """A study database that is written; reads as `Reader` does.

    Args:
        engine: Connections to it; its schema must be the one of this version.
        clock: Unix time; a runner's, if it simulates.
    """

    def __init__(self, engine: Engine, clock: Clock = time.time) -> None:
        super().__init__(engine, clock)
        self._driven: dict[str, tuple[Driver, int]] = {}

    @classmethod
    def open(
        cls,
        where: str | Path,
        *,
        create: bool = True,
        clock: Clock = time.time,
        busy: float | None = None,
    ) -> Self:
        """Open a study database for writing; a file of an older version is upgraded in place.

        Args:
            where: A file, a run folder, or an SQLAlchemy URL.
            create: Whether to create the file and the tables where there are none.
            clock: Unix time; a runner's, if it simulates.
            busy: Seconds that a write waits for a file that is locked; None for `BUSY_SECONDS`.

        Raises:
            StorageError: If it is missing, holds no study, or cannot be written.
            NewerDatabase: If a newer autotune wrote it; nothing was changed.
        """
        engine = connect(where, "create" if create else "write", busy)
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
        driver = Driver.current()
        with self._writing() as session:
            row = run_row(spec, driver, self.clock())
            session.add(row)
            try:
                session.flush()
            except IntegrityError as error:
                raise StorageError(
                    f"there is a run '{spec.name}' in '{self.where}'",
                    help=f"autotune resume {spec.name}   to continue it\nor choose another --name",
                ) from error
            session.add_all(environment_rows(row.id, spec))
        self._driven[spec.name] = (driver, 0)

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
            insert_all(session, {EventRow: [event_row(row.id, event)]})
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
                row = TrialRow(run_id=owner)
                session.add(row)
            elif _same_start(row, record):
                return
            elif row.status != INTERRUPTED:
                raise StorageError(
                    f"trial {record.number} of run '{run}' is recorded as {row.status}",
                    help="only a trial that was interrupted is repeated under its number",
                )
            else:
                session.execute(delete(KnobRow).where(KnobRow.trial_id == row.id))
            describe_trial(row, record, knobs)
            session.flush()
            insert_all(session, {KnobRow: knob_rows(row.id, record.config, knobs)})

    def finish_trial(self, run: str, record: TrialRecord, metric: Metric) -> None:
        """Record how a trial ended and everything that it measured.

        Args:
            run: Name of the run.
            record: The trial with its outcome.
            metric: The metric that is searched for.

        Raises:
            StorageError: If the trial is not running, and did not end just so.
        """
        if record.outcome is None:
            raise ValueError(f"trial {record.number} has no outcome to record")
        with self._writing() as session:
            row = session.scalar(_trial(self._beat(session, run), record.number))
            if row is not None and row.outcome == json.dumps(record.outcome.to_json()):
                return
            if row is None or row.status not in (RUNNING, PAUSED):
                raise StorageError(
                    f"trial {record.number} of run '{run}' cannot be finished: "
                    + ("it was never started" if row is None else f"it is {row.status}")
                )
            if row.outcome is not None:  # that of a pause, which the new one contains
                for table in (ScoreRow, PeakRow, AnatomyRow, RungRow):
                    session.execute(delete(table).where(table.trial_id == row.id))
            describe_outcome(row, record, record.outcome, metric)
            insert_all(session, outcome_rows(row.id, record.outcome))

    def add_repeat(self, run: str, record: TrialRecord, metric: Metric) -> None:
        """Record the last of a trial's repeats, and the mean over all its seeds.

        Raises:
            StorageError: If that seed is recorded, and did not end just so.
        """
        again = record.repeats[-1]
        with self._writing() as session:
            row = session.scalars(_trial(self._beat(session, run), record.number)).one()
            known = session.get(RepeatRow, (row.id, again.seed))
            if known is None:
                known = RepeatRow(trial_id=row.id)
                describe_repeat(known, again, metric)
                session.add(known)
            elif known.outcome != json.dumps(again.outcome.to_json()):
                raise StorageError(f"trial {run}/{record.number} has run with seed {again.seed}")
            describe_mean(row, record, metric)

    def continue_trial(self, run: str, number: int) -> None:
        """Record that a paused trial goes on; interrupted, it is paused again.

        Raises:
            StorageError: If it is not paused.
        """
        with self._writing() as session:
            row = session.scalar(_trial(self._beat(session, run), number))
            going = row is not None and row.status == RUNNING and row.outcome is not None
            if row is None or not (going or row.status == PAUSED):
                raise StorageError(f"trial {number} of run '{run}' is not paused, so cannot go on")
            row.status = RUNNING

    def interrupt_trial(self, run: str, number: int) -> None:
        """Mark a running trial as interrupted: it is to be repeated when the run is resumed."""
        with self._writing() as session:
            self._interrupt(session, self._beat(session, run), number)

    def set_front(self, run: str, numbers: Collection[int]) -> None:
        """Record which trials are on the front; all others are not."""
        with self._writing() as session:
            owner = self._beat(session, run)
            mine = update(TrialRow).where(TrialRow.run_id == owner)
            joined = TrialRow.number.in_(numbers)
            session.execute(mine.where(TrialRow.on_front, ~joined).values(on_front=False))
            session.execute(mine.where(~TrialRow.on_front, joined).values(on_front=True))

    def record_event(self, run: str, event: Event) -> None:
        """Record something that a trial reported; a trial below 0 stands for the run itself."""
        with self._writing() as session:
            insert_once(session, event_row(self._beat(session, run), event))

    def add_artifact(self, run: str, kind: str, path: str | Path, trial: int | None = None) -> None:
        """Record a file that a trial, or without a number the run, left."""
        with self._writing() as session:
            owner = self._beat(session, run)
            session.add(ArtifactRow(run_id=owner, trial=trial, kind=kind, path=str(path)))

    def finish_run(self, run: str, status: str) -> None:
        """Record that a run ended: `done`, `interrupted` or `failed`.

        Trials that still run in it are marked as interrupted.
        """
        with self._writing() as session:
            owner = self._beat(session, run)
            self._interrupt(session, owner)
            ended = {"status": status, "finished": self.clock()}
            session.execute(update(RunRow).where(RunRow.id == owner).values(ended))

    def heartbeat(self, run: str) -> None:
        """Say that the driver is at work. Every other write says so too.

        A driver on another host counts as gone after `LEASE_SECONDS` without a write.

        Raises:
            StorageError: If another process has taken the run over meanwhile.
        """
        with self._writing() as session:
            self._beat(session, run)

    def deliver(self, write: Callable[[], None]) -> None:
        """Write something else that belongs to the run into the same database, in its turn."""
        with said(self.where):
            write()

    def attempt_in(self, most: float) -> float:
        """Return the seconds until this has something to write by itself, at most `most`."""
        return most

    def request_stop(self, run: str, asker: str) -> None:
        """Ask the driver of a run, wherever it is, to end it safely.

        Args:
            run: Name of the run.
            asker: Who asks, for the record: a user and a host.
        """
        with self._writing() as session:
            event = Event(trial=-1, kind=STOP, data={"by": asker}, time=self.clock())
            insert_all(session, {EventRow: [event_row(self.run_row(session, run).id, event)]})

    def stop_request(self, run: str) -> str | None:
        """Return who asked for the run to end since it was started or resumed, None if nobody."""
        with self.reading() as session:
            row = self.run_row(session, run)
            asked = (
                select(EventRow.data)
                .where(EventRow.run_id == row.id, EventRow.trial.is_(None), EventRow.kind == STOP)
                .where(EventRow.id > self._driven[run][1])
            )
            data = session.scalar(asked.order_by(EventRow.id).limit(1))
            return None if data is None else str(json.loads(data)["by"])

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

    def _beat(self, session: Session, run: str) -> int:
        """Say that the driver is at work; return the key of the run, which nobody else writes."""
        found = session.execute(HEARTBEAT, {"run": run}).one_or_none()
        if found is None:
            return self.run_row(session, run).id  # which says that there is no such run
        key, status, elapsed, heartbeat, pid, host, born = found
        driver = Driver(pid=pid, host=host, born=born)
        if run in self._driven and driver != self._driven[run][0]:
            raise StorageError(
                f"run '{run}' was taken over by process {driver.pid} on {driver.host}",
                help="this process ends; what the other one records is complete",
            )
        now = self.clock()
        if status == RUNNING:
            elapsed += max(0.0, now - heartbeat)
        beat(session, key, elapsed, now)
        return int(key)

    def _take_over(self, session: Session, run: str) -> RunRow:
        driver, now = Driver.current(), self.clock()
        row = self._locked(session, run)
        old = driver_of(row)
        if row.status == RUNNING and old != driver and old.alive(row.heartbeat, now):
            raise StorageError(
                f"run '{run}' is being driven by process {old.pid} on {old.host}",
                help=f"wait until it ends, or stop it: kill -INT {old.pid}\n"
                f"a driver on another host counts as gone {LEASE_SECONDS:.0f} s after it died",
            )
        row.driver_pid, row.driver_host, row.driver_born = driver.pid, driver.host, driver.born
        row.status, row.finished, row.heartbeat = RUNNING, None, now
        session.flush()
        self._interrupt(session, row.id)
        session.flush()
        last = session.scalar(select(func.max(EventRow.id)).where(EventRow.run_id == row.id))
        self._driven[run] = (driver, last or 0)
        return row

    def _locked(self, session: Session, run: str) -> RunRow:
        """Return a run's row; nobody else writes it before the transaction ends."""
        row = session.scalar(select(RunRow).where(RunRow.name == run).with_for_update())
        return self.run_row(session, run) if row is None else row

    def _interrupt(self, session: Session, run: int, number: int | None = None) -> None:
        """Mark what is running, or only the trial of that number; an event keeps what it was."""
        mine = select(TrialRow).where(TrialRow.run_id == run, TrialRow.status == RUNNING)
        if number is not None:
            mine = mine.where(TrialRow.number == number)
        for trial in session.scalars(mine):
            trial.status = PAUSED if trial.outcome is not None else INTERRUPTED
            trial.finished = self.clock()
            data = {"started": trial.started, "config": json.loads(trial.config)}
            event = Event(trial=trial.number, kind=INTERRUPTED, data=data, time=trial.finished)
            insert_all(session, {EventRow: [event_row(run, event)]})

    def _interrupted(self, session: Session, run: str) -> list[int]:
        mine = self._trials(session, run).where(TrialRow.status == INTERRUPTED)
        return [trial.number for trial in session.scalars(mine)]


def _same_start(row: TrialRow, record: TrialRecord) -> bool:
    """Whether a trial's row is what recording its start once before has left."""
    same = row.fingerprint == record.config.fingerprint and row.started == record.started
    return row.status == RUNNING and same


def _trial(run: int, number: int) -> Select[TrialRow]:
    return select(TrialRow).where(TrialRow.run_id == run, TrialRow.number == number)
