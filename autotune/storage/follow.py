"""What happens in a run, as its database tells it: for whoever watches from another process.

A `Follower` is asked again and again; each time it returns what came since, in the order in which
it happened. It reads the trials that are open or new, not all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import or_, select

from autotune.core.observer import Observer
from autotune.core.pareto import front
from autotune.core.record import TrialRecord
from autotune.core.workload import Metric
from autotune.storage.models import INTERRUPTED, PAUSED, RUNNING, EventRow, TrialRow
from autotune.storage.reader import Reader, RunInfo
from autotune.storage.rows import read_event, read_record
from autotune.trial.spec import Event

_OPEN = frozenset({RUNNING, INTERRUPTED, PAUSED})
_FIRST, _NEXT, _LAST = range(3)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Happening:
    """Something that happened: to a trial, or to the run."""

    time: float
    order: int
    record: TrialRecord | None = None
    event: Event | None = None


class Follower:
    """Tells an observer what happens in a run, as its own driver does.

    Args:
        reader: The study database.
        run: Name of the run.
        metric: What it searches for.
    """

    def __init__(self, reader: Reader, run: str, metric: Metric) -> None:
        self._reader = reader
        self._run = run
        self._metric = metric
        self._info = reader.info(run)
        self._now = self._info.started
        self._last_event = 0
        self._last_trial = -1
        self._open: dict[int, str] = {}
        self._records: dict[int, TrialRecord] = {}
        self._front: list[TrialRecord] = []

    def now(self) -> float:
        """Return the time of the run: when it started, and how long it was worked at."""
        return self._now

    def tell(self, observer: Observer) -> RunInfo:
        """Tell what came since the last call.

        Returns:
            How the run stands; unless it is `running`, nothing more will come.

        Raises:
            StorageError: If the database cannot be read; nothing of the call is lost.
        """
        # Before the trials: what is recorded after the last look belongs to a run that goes on.
        info = self._reader.info(self._run)
        happenings = sorted(self._news(), key=lambda h: (h.time, h.order))
        self._info, self._now = info, info.started + info.elapsed
        for happening in happenings:
            self._pass_on(happening, observer)
        return info

    def _pass_on(self, happening: _Happening, observer: Observer) -> None:
        record, event = happening.record, happening.event
        if event is not None:
            if event.trial < 0:
                if event.kind == "note":
                    observer.note(str(event.data.get("text", "")))
            elif event.trial in self._records:
                observer.event(self._records[event.trial], event)
        elif record is not None and happening.order == _FIRST:
            observer.trial_started(record)
        elif record is not None:
            self._front = front([*self._front, record], self._metric)
            joined = any(member.number == record.number for member in self._front)
            observer.trial_ended(record, joined, self._front)

    def _news(self) -> list[_Happening]:
        with self._reader.reading() as session:
            run_id = self._reader.run_row(session, self._run).id
            events = session.scalars(
                select(EventRow)
                .where(EventRow.run_id == run_id, EventRow.id > self._last_event)
                .order_by(EventRow.id)
            ).all()
            mine = select(TrialRow).where(TrialRow.run_id == run_id).order_by(TrialRow.number)
            fresh = or_(TrialRow.number > self._last_trial, TrialRow.number.in_(list(self._open)))
            rows = session.scalars(mine.where(fresh)).all()
            found = [h for row in rows for h in self._of_trial(row)]
            self._last_event = max([self._last_event, *(row.id for row in events)])
            told = [read_event(row) for row in events]
        return [*found, *(_Happening(time=e.time, order=_NEXT, event=e) for e in told)]

    def _of_trial(self, row: TrialRow) -> Iterator[_Happening]:
        """Yield that a trial started, or goes on, and that it ended, or pauses."""
        record, before = read_record(row), self._open.get(row.number)
        self._records[row.number] = record
        self._last_trial = max(self._last_trial, row.number)
        outcome = record.outcome
        state = f"{row.status} {outcome.seconds if outcome else ''}"
        if row.status in _OPEN:
            self._open[row.number] = state
        else:
            self._open.pop(row.number, None)
        if state == before:
            return
        if before is None or (row.status == RUNNING and not before.startswith(RUNNING)):
            yield _Happening(time=row.started, order=_FIRST, record=record)
        if outcome is not None:
            ended = record.started + outcome.seconds
            yield _Happening(time=ended, order=_LAST, record=record)
