"""Between what the loop speaks of and rows of tables: specs, trials, knob values, events.

Whole objects are kept as JSON and come back equal; the columns beside are what SQL asks for.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from autotune.core.budget import Budget
from autotune.core.config import Config
from autotune.core.context import Device
from autotune.core.knob import Knob
from autotune.core.outcome import Completed, Outcome, outcome_from_json
from autotune.core.record import Origin, TrialRecord
from autotune.core.workload import Metric, RunSpec
from autotune.storage.driver import Driver
from autotune.storage.models import (
    RUNNING,
    AnatomyRow,
    EnvironmentRow,
    EventRow,
    KnobRow,
    PeakRow,
    RunRow,
    ScoreRow,
    TrialRow,
)
from autotune.trial.spec import Event


def run_row(spec: RunSpec, driver: Driver, now: float) -> RunRow:
    """Return the row of a run that starts now."""
    budget = Budget(total_bytes=spec.budget_bytes, headroom=spec.headroom)
    metric = spec.facts.metric
    return RunRow(
        name=spec.name,
        status=RUNNING,
        started=now,
        elapsed=0.0,
        spec=json.dumps(spec.to_json()),
        fingerprint=spec.fingerprint,
        budget_bytes=spec.budget_bytes,
        headroom=spec.headroom,
        limit_bytes=budget.limit_bytes,
        objective=spec.facts.workload.objective,
        metric=metric.name,
        maximize=metric.maximize,
        space=spec.space,
        sampler=spec.sampler,
        seed=spec.seed,
        device=_device(spec.device).label,
        driver_pid=driver.pid,
        driver_host=driver.host,
        driver_born=driver.born,
        heartbeat=now,
    )


def environment_rows(run_id: int, spec: RunSpec) -> list[EnvironmentRow]:
    """Return versions as `version.NAME` and facts of the device as `device.NAME`."""
    facts = {f"version.{name}": value for name, value in spec.versions.items()}
    facts |= {f"device.{name}": json.dumps(value) for name, value in spec.device.items()}
    return [EnvironmentRow(run_id=run_id, name=name, value=value) for name, value in facts.items()]


def read_spec(text: str) -> RunSpec:
    """Rebuild a spec from its JSON text; the device's capability comes back as the pair it was."""
    data = json.loads(text)
    return RunSpec.from_json({**data, "device": _device(data["device"]).to_json()})


def describe_trial(row: TrialRow, record: TrialRecord, knobs: Iterable[Knob]) -> None:
    """Write what is known of a trial when it is submitted into its row."""
    knobs = tuple(knobs)
    row.number = record.number
    row.config = json.dumps(record.config.to_json())
    row.fingerprint = record.config.fingerprint
    row.accuracy_key = record.config.accuracy_key(knobs)
    row.label = record.config.describe(knobs)
    row.origin = record.origin.value
    row.status = RUNNING
    row.started = record.started
    row.finished = None
    row.limit_bytes = record.limit_bytes
    row.rehearsed_bytes = record.rehearsed_bytes or None
    row.feasible = False
    row.on_front = record.on_front


def describe_outcome(row: TrialRow, record: TrialRecord, outcome: Outcome, metric: Metric) -> None:
    """Write how a trial ended into its row."""
    measured = outcome.measurement
    score = record.score(metric)
    row.status = outcome.tag
    row.finished = record.started + outcome.seconds
    row.limit_bytes = record.limit_bytes
    row.feasible = record.feasible
    row.on_front = record.on_front
    row.score = None if score is None else _finite(score.value)
    row.stderr = None if score is None else _finite(score.stderr)
    row.seconds = outcome.seconds
    row.peak_bytes = measured.peak_bytes
    row.footprint_bytes = measured.footprint_bytes
    row.step_seconds = measured.step_seconds
    row.throughput = measured.throughput
    row.steps = measured.steps
    row.parameters = measured.parameters
    row.trained_parameters = measured.trained_parameters
    row.failure = None if isinstance(outcome, Completed) else outcome.summary
    for column in ("phase", "step", "needed_bytes", "signal", "error", "traceback"):
        value = getattr(outcome, column, None)
        setattr(row, column, None if value is None or value == "" else value)
    row.outcome = json.dumps(outcome.to_json())


def outcome_rows(trial_id: int, outcome: Outcome) -> list[ScoreRow | PeakRow | AnatomyRow]:
    """Return a trial's scores, peaks and anatomy; of equal peaks the greatest."""
    scores = outcome.scores if isinstance(outcome, Completed) else {}
    peaks: dict[tuple[int, str, str], int] = {}
    for peak in outcome.measurement.peaks:
        key = (peak.rank, peak.phase.value, peak.kind.value)
        peaks[key] = max(peak.bytes, peaks.get(key, 0))
    return [
        *(
            ScoreRow(
                trial_id=trial_id,
                metric=name,
                value=_finite(score.value),
                stderr=_finite(score.stderr),
                n=score.n,
            )
            for name, score in scores.items()
        ),
        *(
            PeakRow(trial_id=trial_id, rank=rank, phase=phase, kind=kind, bytes=amount)
            for (rank, phase, kind), amount in peaks.items()
        ),
        *(
            AnatomyRow(trial_id=trial_id, part=part, bytes=amount)
            for part, amount in outcome.measurement.anatomy.items()
        ),
    ]


def knob_rows(trial_id: int, config: Config, knobs: Iterable[Knob]) -> list[KnobRow]:
    """Return a row for every knob, neutral ones included."""
    knobs = tuple(knobs)
    return [
        KnobRow(
            trial_id=trial_id,
            knob=knob.name,
            value=str(value),
            number=None if isinstance(value, str) else float(value),
            neutral=value == knob.neutral,
        )
        for knob, value in zip(knobs, config.complete(knobs).values(), strict=True)
    ]


def read_record(row: TrialRow) -> TrialRecord:
    """Rebuild a trial from its row."""
    return TrialRecord(
        number=row.number,
        config=Config(json.loads(row.config)),
        origin=Origin(row.origin),
        started=row.started,
        outcome=None if row.outcome is None else outcome_from_json(json.loads(row.outcome)),
        limit_bytes=row.limit_bytes,
        rehearsed_bytes=row.rehearsed_bytes or 0,
        on_front=row.on_front,
    )


def event_row(run_id: int, event: Event) -> EventRow:
    """Return the row of an event; a trial below 0 stands for the run itself."""
    data = {name: _plain(value) for name, value in event.data.items()}
    return EventRow(
        run_id=run_id,
        trial=event.trial if event.trial >= 0 else None,
        time=event.time,
        kind=event.kind,
        data=json.dumps(data),
    )


def read_event(row: EventRow) -> Event:
    """Rebuild an event from its row."""
    return Event(
        trial=-1 if row.trial is None else row.trial,
        kind=row.kind,
        data=json.loads(row.data),
        time=row.time,
    )


def _device(data: Mapping[str, Any]) -> Device:
    capability = data.get("capability")
    return Device(**{**data, "capability": tuple(capability) if capability else None})


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _plain(value: Any) -> Any:
    # JSON has no NaN and SQLite's json_extract refuses it; a diverging loss must stay queryable.
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
