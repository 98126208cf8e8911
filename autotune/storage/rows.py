"""Between what the loop speaks of and rows of tables: specs, trials, knob values, events.

Whole objects are kept as JSON and come back equal; the columns beside are what SQL asks for.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from autotune.core.budget import Budget
from autotune.core.config import Config
from autotune.core.context import Device
from autotune.core.knob import Knob
from autotune.core.outcome import Completed, Outcome, Paused, outcome_from_json
from autotune.core.record import Origin, TrialRecord
from autotune.core.seeds import Repetition
from autotune.core.workload import Metric, RunSpec
from autotune.storage.driver import Driver
from autotune.storage.models import (
    PAUSED,
    RUNNING,
    AnatomyRow,
    Base,
    EnvironmentRow,
    EventRow,
    PeakRow,
    RepeatRow,
    RungRow,
    RunRow,
    ScoreRow,
    TrialRow,
)
from autotune.storage.statements import Values
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
        device=read_device(spec.device).label,
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
    return RunSpec.from_json({**data, "device": read_device(data["device"]).to_json()})


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


def outcome_rows(trial_id: int, outcome: Outcome) -> dict[type[Base], list[Values]]:
    """Return a trial's scores, at rungs too, peaks and anatomy; of equal peaks the greatest."""
    scores = outcome.scores if isinstance(outcome, Completed) else {}
    peaks: dict[tuple[int, str, str], int] = {}
    for peak in outcome.measurement.peaks:
        key = (peak.rank, peak.phase.value, peak.kind.value)
        peaks[key] = max(peak.bytes, peaks.get(key, 0))
    return {
        ScoreRow: [
            {
                "trial_id": trial_id,
                "metric": name,
                "value": _finite(score.value),
                "stderr": _finite(score.stderr),
                "n": score.n,
            }
            for name, score in scores.items()
        ],
        PeakRow: [
            {"trial_id": trial_id, "rank": rank, "phase": phase, "kind": kind, "bytes": amount}
            for (rank, phase, kind), amount in peaks.items()
        ],
        AnatomyRow: [
            {"trial_id": trial_id, "part": part, "bytes": amount}
            for part, amount in outcome.measurement.anatomy.items()
        ],
        RungRow: [
            {
                "trial_id": trial_id,
                "step": rung.step,
                "metric": name,
                "steps": rung.steps,
                "share": rung.share,
                "value": _finite(score.value),
                "stderr": _finite(score.stderr),
                "seconds": rung.seconds,
            }
            for rung in outcome.rungs
            for name, score in rung.scores.items()
        ],
    }


def knob_rows(trial_id: int, config: Config, knobs: Iterable[Knob]) -> list[Values]:
    """Return a row for every knob, neutral ones included."""
    knobs = tuple(knobs)
    return [
        {
            "trial_id": trial_id,
            "knob": knob.name,
            "value": str(value),
            "number": None if isinstance(value, str) else float(value),
            "neutral": value == knob.neutral,
        }
        for knob, value in zip(knobs, config.complete(knobs).values(), strict=True)
    ]


def describe_repeat(row: RepeatRow, again: Repetition, metric: Metric) -> None:
    """Write how a trial ended with a further seed into its row."""
    outcome, score = again.outcome, again.score(metric)
    row.seed = again.seed
    row.status = outcome.tag
    row.started = again.started
    row.seconds = outcome.seconds
    row.score = None if score is None else _finite(score.value)
    row.stderr = None if score is None else _finite(score.stderr)
    row.peak_bytes = outcome.measurement.peak_bytes
    row.failure = None if isinstance(outcome, Completed) else outcome.summary
    row.outcome = json.dumps(outcome.to_json())


def describe_mean(row: TrialRow, record: TrialRecord, metric: Metric) -> None:
    """Write the mean over the seeds of a trial into its row; its outcome stays the first one's."""
    score = record.score(metric)
    row.score = None if score is None else _finite(score.value)
    row.stderr = None if score is None else _finite(score.stderr)


def read_repeat(row: RepeatRow) -> Repetition:
    """Rebuild a repeat from its row."""
    outcome = outcome_from_json(json.loads(row.outcome))
    return Repetition(seed=row.seed, started=row.started, outcome=outcome)


def read_record(row: TrialRow, repeats: Sequence[Repetition] = ()) -> TrialRecord:
    """Rebuild a trial from its row and its repeats."""
    outcome = None if row.outcome is None else outcome_from_json(json.loads(row.outcome))
    going = outcome if isinstance(outcome, Paused) and row.status != PAUSED else None
    return TrialRecord(
        number=row.number,
        config=Config(json.loads(row.config)),
        origin=Origin(row.origin),
        started=row.started,
        outcome=None if going else outcome,
        limit_bytes=row.limit_bytes,
        rehearsed_bytes=row.rehearsed_bytes or 0,
        on_front=row.on_front,
        paused=going,
        repeats=tuple(repeats),
    )


def event_row(run_id: int, event: Event) -> Values:
    """Return the row of an event; a trial below 0 stands for the run itself."""
    data = {name: _plain(value) for name, value in event.data.items()}
    return {
        "run_id": run_id,
        "trial": event.trial if event.trial >= 0 else None,
        "time": event.time,
        "kind": event.kind,
        "data": json.dumps(data),
    }


def read_event(row: EventRow) -> Event:
    """Rebuild an event from its row."""
    return Event(
        trial=-1 if row.trial is None else row.trial,
        kind=row.kind,
        data=json.loads(row.data),
        time=row.time,
    )


def read_device(data: Mapping[str, Any]) -> Device:
    """Rebuild a device from its JSON object."""
    capability = data.get("capability")
    return Device(**{**data, "capability": tuple(capability) if capability else None})


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _plain(value: Any) -> Any:
    # JSON has no NaN and SQLite's json_extract refuses it; a diverging loss must stay queryable.
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
