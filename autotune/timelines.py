"""Memory timelines of a run's best trials, kept beside their logs.

A report may be made months later, on a machine that has neither the model nor the data, so what it
shows is made when the run ends, and where that was skipped, by the first report. The picks come
first, then the rest of the front; each is rehearsed once, without being trained
(`memory/timeline.py`). What cannot be rehearsed is remembered, too, with the reason.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from autotune.core.errors import AutotuneError, StorageError
from autotune.core.pareto import front, picks
from autotune.core.record import TrialRecord
from autotune.core.workload import Metric
from autotune.memory.rehearsal import CannotRehearse
from autotune.memory.timeline import Timeline, timeline_of
from autotune.memory.trace import Trace
from autotune.storage.places import timeline_path
from autotune.trial.layouts.seat import ranks_of
from autotune.trial.spec import TrialSpec

if TYPE_CHECKING:  # reports read timelines and must not import a driver with its sampler
    from autotune.driver import Search

MOST_TRIALS = 8
"""Trials that have a timeline, at most: as many as a reader compares."""

SHARE = 0.1
"""Of the time that a run took, what its timelines may take at its end."""

LEAST_SECONDS = 10.0
"""With less time than this the process that rehearses would not even start."""

SpecOf = Callable[[TrialRecord], TrialSpec]
"""Returns what is rehearsed for a trial."""


class Tracer(Protocol):
    """Follows every allocation of a trial; see `memory/rehearsal_worker.py`."""

    def trace(self, spec: TrialSpec) -> Trace:
        """Return every event of a trial.

        Raises:
            AutotuneError: If it cannot be rehearsed.
        """


def shown(records: Sequence[TrialRecord], metric: Metric) -> list[TrialRecord]:
    """Return the trials that have a timeline, in the order in which they are worth one.

    Args:
        records: Every trial of a run.
        metric: What it searched for.
    """
    best = picks(records, metric)
    wanted = [best.knee, best.best_accuracy, best.least_memory, best.cheapest]
    every = [record for record in wanted if record is not None] + front(records, metric)
    return list({record.number: record for record in every}.values())[:MOST_TRIALS]


def missing(folder: Path, records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Return the trials of which nothing is kept yet.

    Args:
        folder: Of the run.
        records: Its trials that are to have a timeline.
    """
    return [record for record in records if not timeline_path(folder, record.number).is_file()]


def keep_timelines(
    folder: Path,
    records: Sequence[TrialRecord],
    spec_of: SpecOf,
    tracer: Tracer,
    *,
    seconds: float,
    told: Callable[[str], None] | None = None,
) -> None:
    """Rehearse trials, and keep the timeline of each, or the reason why there is none.

    Args:
        folder: Of the run.
        records: The trials, the most important first.
        spec_of: Says what is rehearsed.
        tracer: Rehearses.
        seconds: Time after which no further one is begun.
        told: Hears which trial is rehearsed, as a sentence.
    """
    until = time.monotonic() + seconds
    for record in records:
        if time.monotonic() > until:
            return
        if told is not None:
            told(f"rehearsing one step of trial {record.number} for its memory timeline")
        document = _document(spec_of(record), tracer)
        path = timeline_path(folder, record.number)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{json.dumps(document, separators=(',', ':'))}\n", encoding="utf-8")
        except OSError:
            return  # results that cannot be written are shown without


def keep_best(search: Search, tracer: Tracer, seconds: float) -> None:
    """Keep what a report shows of the best trials' memory, if that is short beside the run.

    Args:
        search: A search that has ended.
        tracer: Rehearses.
        seconds: That the search took.
    """
    best = shown(list(search.records.values()), search.plan.spec.facts.metric)
    left = missing(search.folder, best)
    if not left or SHARE * seconds < LEAST_SECONDS:
        return
    search.note("rehearsing one step of the best trials, for the report's memory timelines")
    device = search.plan.devices[0]
    with contextlib.suppress(KeyboardInterrupt):  # the run is done, with or without them
        keep_timelines(
            search.folder,
            left,
            lambda record: search.trial_spec(record, device),
            tracer,
            seconds=SHARE * seconds,
        )


def read_timeline(folder: Path, number: int) -> Timeline | str:
    """Return the timeline of a trial, or a sentence why there is none; empty if none was made.

    Args:
        folder: Of the run.
        number: The trial.
    """
    path = timeline_path(folder, number)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if "reason" in document:
            return str(document["reason"])
        return Timeline.from_json(document)
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, TypeError) as error:
        return f"'{path}' cannot be read: {error}"
    except StorageError as error:
        return f"'{path}' cannot be read: {error.message}"


def _document(spec: TrialSpec, tracer: Tracer) -> Mapping[str, object]:
    inference = spec.facts.workload.purpose == "inference"
    try:
        if (ranks := ranks_of(spec)) > 1:
            raise CannotRehearse(f"it trains on {ranks} ranks, and each has a timeline of its own")
        trace = tracer.trace(replace(spec, probe=not inference))
        return timeline_of(trace, spec.facts.workload.purpose).to_json()
    except AutotuneError as error:
        return {"reason": f"it cannot be rehearsed: {error.message}"}
