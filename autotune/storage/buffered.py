"""Writes that survive a database that is away: kept in order, and delivered when it answers again.

The driver of a run goes on while its database restarts or is locked: trials are running, and what
they report must not be lost. Writes that do not get through wait here, in order, and each is tried
again until it is in; since writing the same thing twice writes it once (`store.py`), nothing is
doubled if a connection breaks just as a transaction is committed. The buffer has an end: when it is
full, and when the run ends, the driver waits for the database.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from functools import partial
from pathlib import Path

from sqlalchemy import Engine

from autotune.core.errors import StorageError, UnreachableDatabase
from autotune.core.knob import Knob
from autotune.core.record import TrialRecord
from autotune.core.workload import Metric
from autotune.storage.engine import WRITES, said
from autotune.storage.reader import Clock
from autotune.storage.store import Store
from autotune.trial.spec import Event

MOST_WAITING = 10_000
"""Writes that may wait; a trial makes about ten."""

LEAST_PAUSE, MOST_PAUSE = 0.25, 5.0
"""Seconds between two attempts: twice as many after each that fails, up to the second number."""

PATIENCE_SECONDS = 1800.0
"""How long the driver waits for a database when it can do nothing else."""

LOCKED_SECONDS = 2.0
"""How long one attempt waits for a file that another program has locked."""

STOP_SECONDS = 1.0
"""A request to stop is looked for this often at most."""

Write = Callable[[], None]


class BufferedStore(Store):
    """A study database that is written, if need be later.

    Args:
        engine: Connections to it; its schema must be the one of this version.
        clock: Unix time; a runner's, if it simulates.

    Attributes:
        tell: Told, once for each time, that the database is away and that it is back.
    """

    def __init__(self, engine: Engine, clock: Clock = time.time) -> None:
        super().__init__(engine, clock)
        self.tell: Callable[[str], None] = _say_nothing
        self._waiting: deque[Write] = deque()
        self._pause = LEAST_PAUSE
        self._next_attempt = 0.0
        self._away_since: float | None = None
        self._next_look = 0.0

    @property
    def waiting(self) -> int:
        """Number of writes that have not got through."""
        return len(self._waiting)

    def attempt_in(self, most: float) -> float:
        """Return the seconds until writes that wait are tried again, at most `most`."""
        if not self._waiting:
            return most
        return min(most, max(0.0, self._next_attempt - time.monotonic()))

    def add_trial(self, run: str, record: TrialRecord, knobs: Iterable[Knob]) -> None:
        """Record that a trial was submitted; see `Store.add_trial`."""
        self._write(partial(super().add_trial, run, record, tuple(knobs)))

    def continue_trial(self, run: str, number: int) -> None:
        """Record that a paused trial goes on; see `Store.continue_trial`."""
        self._write(partial(super().continue_trial, run, number))

    def finish_trial(self, run: str, record: TrialRecord, metric: Metric) -> None:
        """Record how a trial ended; see `Store.finish_trial`."""
        self._write(partial(super().finish_trial, run, record, metric))

    def add_repeat(self, run: str, record: TrialRecord, metric: Metric) -> None:
        """Record how a trial ended with a further seed; see `Store.add_repeat`."""
        self._write(partial(super().add_repeat, run, record, metric))

    def interrupt_trial(self, run: str, number: int) -> None:
        """Mark a running trial as interrupted; see `Store.interrupt_trial`."""
        self._write(partial(super().interrupt_trial, run, number))

    def set_front(self, run: str, numbers: Collection[int]) -> None:
        """Record which trials are on the front; see `Store.set_front`."""
        self._write(partial(super().set_front, run, tuple(numbers)))

    def record_event(self, run: str, event: Event) -> None:
        """Record something that a trial reported; see `Store.record_event`."""
        self._write(partial(super().record_event, run, event))

    def add_artifact(self, run: str, kind: str, path: str | Path, trial: int | None = None) -> None:
        """Record a file that was left; see `Store.add_artifact`."""
        self._write(partial(super().add_artifact, run, kind, path, trial))

    def deliver(self, write: Write) -> None:
        """Write something else in its turn; see `Store.deliver`."""
        self._write(partial(super().deliver, write))

    def heartbeat(self, run: str) -> None:
        """Say that the driver is at work, unless older writes wait, which will say so."""
        if self._waiting:
            self._flush()
        else:
            self._write(partial(super().heartbeat, run))

    def finish_run(self, run: str, status: str) -> None:
        """Record that a run ended, and wait until everything is written.

        Raises:
            UnreachableDatabase: If the database has not answered for `PATIENCE_SECONDS`.
        """
        self._write(partial(super().finish_run, run, status))
        self._wait_until(0)

    def stop_request(self, run: str) -> str | None:
        """Return who asked for the run to end; looked up at most once in `STOP_SECONDS`."""
        now = time.monotonic()
        if now < self._next_look or self._waiting:
            return None
        self._next_look = now + STOP_SECONDS
        try:
            return super().stop_request(run)
        except UnreachableDatabase:
            return None  # the next write will say so

    def _write(self, write: Write) -> None:
        self._waiting.append(write)
        self._flush()
        if len(self._waiting) >= MOST_WAITING:
            self._wait_until(MOST_WAITING // 2)

    def _flush(self) -> None:
        """Deliver what waits, in order, as far as the database answers."""
        if self._away_since is not None and time.monotonic() < self._next_attempt:
            return
        while self._waiting:
            try:
                with said(self.where):
                    if self._away_since is not None:
                        self._knock()
                    self._waiting[0]()
            except UnreachableDatabase as error:
                self._put_off(error)
                return
            except StorageError:
                self._waiting.clear()  # or the end of the run would fail over it once more
                raise
            self._waiting.popleft()
            self._note_return()

    def _knock(self) -> None:
        """Fail at once if nothing can be written: Optuna would try for long by itself."""
        with self.engine.execution_options(**{WRITES: True}).begin():
            pass

    def _put_off(self, error: UnreachableDatabase) -> None:
        now = time.monotonic()
        if self._away_since is None:
            self._away_since, self._pause = now, LEAST_PAUSE
            self.tell(f"{error.message}; the search goes on, and what it finds is recorded later")
        self._next_attempt = now + self._pause
        self._pause = min(2 * self._pause, MOST_PAUSE)

    def _note_return(self) -> None:
        if self._away_since is not None and not self._waiting:
            seconds = time.monotonic() - self._away_since
            self._away_since = None
            self.tell(f"the database answers again after {seconds:.0f} s, and nothing is lost")

    def _wait_until(self, most: int) -> None:
        """Wait until at most so many writes wait."""
        until = time.monotonic() + PATIENCE_SECONDS
        while len(self._waiting) > most:
            if time.monotonic() > until:
                raise UnreachableDatabase(
                    f"'{self.where}' has not answered for {PATIENCE_SECONDS / 60:.0f} minutes, and "
                    f"{len(self._waiting)} writes wait",
                    help="when it answers, `autotune resume` repeats the trials that are missing",
                )
            time.sleep(self.attempt_in(MOST_PAUSE))
            self._flush()


def _say_nothing(_text: str) -> None:
    """Stand in for who is told, until somebody is."""
