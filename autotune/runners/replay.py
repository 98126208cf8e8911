"""Recorded outcomes on simulated time, through the same loop: for tests, docs and samplers.

A trial ends as its configuration ended in the recording, after as many simulated seconds as it
took then; nothing is trained and nobody waits. A configuration that was not recorded ends as the
nearest one did, by Hamming distance over knob values, and its events say which that was. A repeat
with another seed ends as that seed was recorded, and if it was not, as the first one.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autotune.core.domains import Value
from autotune.core.errors import DataError
from autotune.core.outcome import Completed, Outcome, OutOfMemory, Phase, Stopped
from autotune.core.record import TrialRecord, finished
from autotune.core.workload import Workload, WorkloadFacts
from autotune.trial.spec import Event, TrialSpec

PROBE_STEPS = 5


class ReplayRunner:
    """Replays trials of a recorded run.

    Args:
        facts: What the recorded run's objective found.
        records: The recorded trials; those without an outcome are left out.
        slots: Most trials at a time, in simulated time. More that are submitted wait their turn.

    Raises:
        DataError: If no recorded trial has an outcome.
    """

    trains = False

    def __init__(
        self, facts: WorkloadFacts, records: Sequence[TrialRecord], slots: int = 1
    ) -> None:
        self.slots = slots
        self._facts = facts
        self._records = sorted(finished(records), key=lambda record: record.number)
        if not self._records:
            raise DataError(
                "the recording has no trial that ended, so there is nothing to replay",
                help="name a run with at least one finished trial",
            )
        self._now = self._records[0].started
        self._order = itertools.count()
        self._due: list[tuple[float, int, Event]] = []
        self._running: dict[int, _Running] = {}
        self._waiting: deque[TrialSpec] = deque()

    def knows_seed(self, config: Mapping[str, Value], seed: int) -> bool:
        """Whether a repeat with that seed was recorded, of the configuration or the nearest one."""
        record, _ = self._nearest(config)
        return any(again.seed == seed for again in record.repeats)

    def describe(self, workload: Workload, cache: Path) -> WorkloadFacts:
        """Return what the recorded run's objective found, whatever is asked for."""
        return self._facts

    def submit(self, spec: TrialSpec) -> None:
        """Start a trial, or let it wait for a free slot."""
        self._waiting.append(spec)
        self._fill_slots()

    def next(self, timeout: float | None = None) -> Event | None:
        """Move on to the next event; None if none comes within `timeout` simulated seconds."""
        limit = math.inf if timeout is None else self._now + timeout
        if not self._due or self._due[0][0] > limit:
            self._now = limit if math.isfinite(limit) else self._now
            return None
        self._now, _, event = heapq.heappop(self._due)
        if event.kind == "outcome":
            self._running.pop(event.trial, None)
            self._fill_slots()
        elif event.kind == "step":
            self._running[event.trial].step = event.data["step"]
        return event

    def cancel(self, trial: int, reason: str) -> None:
        """End a trial now; its outcome is `Stopped` with this reason."""
        known = self._running.get(trial)
        if known is None and all(spec.number != trial for spec in self._waiting):
            return
        self._waiting = deque(spec for spec in self._waiting if spec.number != trial)
        self._due = [entry for entry in self._due if entry[2].trial != trial]
        heapq.heapify(self._due)
        seconds, step = (self._now - known.started, known.step) if known else (0.0, 0)
        outcome = Stopped(seconds=seconds, step=step, reason=reason)
        self._schedule(self._now, trial, "outcome", outcome.to_json())

    def now(self) -> float:
        """Return the simulated time, in Unix seconds from when the recorded run started."""
        return self._now

    def close(self) -> None:
        """Forget every trial."""
        self._due.clear()
        self._running.clear()
        self._waiting.clear()

    def _fill_slots(self) -> None:
        while self._waiting and len(self._running) < self.slots:
            self._start(self._waiting.popleft())

    def _start(self, spec: TrialSpec) -> None:
        record, distance = self._nearest(spec.config)
        outcome = _outcome(record, spec)
        source = {} if distance == 0 else {"replayed_from": record.number}
        self._running[spec.number] = _Running(started=self._now)
        script = list(_script(outcome))
        for index, (kind, data) in enumerate(script):
            moment = self._now + outcome.seconds * index / len(script)
            extra = source if kind == "phase" else {}
            self._schedule(moment, spec.number, kind, {**data, **extra})
        self._schedule(self._now + outcome.seconds, spec.number, "outcome", outcome.to_json())

    def _schedule(self, moment: float, trial: int, kind: str, data: Mapping[str, Any]) -> None:
        event = Event(trial=trial, kind=kind, data=data, time=moment)
        heapq.heappush(self._due, (moment, next(self._order), event))

    def _nearest(self, config: Mapping[str, Value]) -> tuple[TrialRecord, int]:
        distances = [_distance(record.config, config) for record in self._records]
        nearest = min(range(len(distances)), key=distances.__getitem__)
        return self._records[nearest], distances[nearest]


@dataclass(slots=True, kw_only=True)
class _Running:
    """When a trial started, and the step it was last heard of."""

    started: float
    step: int = 0


def _distance(a: Mapping[str, Value], b: Mapping[str, Value]) -> int:
    """Count the knobs that differ; one that is left out of a configuration is neutral."""
    return sum(a.get(name) != b.get(name) for name in {*a, *b})


def _outcome(record: TrialRecord, spec: TrialSpec) -> Outcome:
    """Return how the trial ends: as recorded, but a probe ends early and without scores."""
    seed = spec.facts.workload.seed
    further = (again.outcome for again in record.repeats if again.seed == seed)
    outcome = next(further, record.outcome)
    if outcome is None:
        raise ValueError(f"trial {record.number} of the recording has no outcome")
    if not spec.probe or not isinstance(outcome, Completed):
        return outcome
    measured = outcome.measurement
    return replace(
        outcome,
        scores={},
        seconds=min(outcome.seconds, PROBE_STEPS * measured.step_seconds),
        measurement=replace(
            measured,
            steps=min(measured.steps, PROBE_STEPS),
            peaks=tuple(peak for peak in measured.peaks if peak.phase is not Phase.EVALUATE),
        ),
    )


def _script(outcome: Outcome) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what a trial reports before it ends so: phases, and three steps between them.

    The loss of steps is not recorded, so it is not a number.
    """
    steps = outcome.measurement.steps
    for phase in _phases(outcome):
        yield "phase", {"phase": phase.value}
        if phase is Phase.STEADY:
            for step in sorted({steps * quarter // 4 for quarter in (1, 2, 3)} - {0}):
                yield "step", {"step": step, "steps": steps, "loss": math.nan}


def _phases(outcome: Outcome) -> tuple[Phase, ...]:
    order = tuple(Phase)
    if isinstance(outcome, Completed):
        return order if outcome.scores else order[: order.index(Phase.STEADY) + 1]
    if isinstance(outcome, OutOfMemory):
        last = outcome.phase
    else:
        last = Phase.STEADY if outcome.measurement.steps else Phase.LOAD
    return order[: order.index(last) + 1]
