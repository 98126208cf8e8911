"""What `--json` prints, as types: one document per command, each with `schema: 1`.

A document says what the screen says, in full and unrounded. Memory is in GiB, time in seconds;
what is not a finite number is null. A field is never taken away nor given another meaning within
one schema; new ones may come.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

from autotune.core.domains import Value
from autotune.core.errors import AutotuneError
from autotune.core.knob import Knob
from autotune.core.outcome import Completed, Score
from autotune.core.record import TrialRecord
from autotune.core.seeds import Repetition
from autotune.core.units import GIB
from autotune.report.effects import Effect, knob_effects
from autotune.storage.places import snapshot_path
from autotune.storage.run import Run

SCHEMA: Literal[1] = 1


class ScoreDocument(TypedDict):
    """One metric of one trial."""

    value: float
    stderr: float | None
    n: int


class TrialDocument(TypedDict):
    """One trial; `config` has the knobs that are off neutral, `scores` are means over `seeds`."""

    trial: int
    origin: str
    status: str
    summary: str
    differs: str
    config: Mapping[str, Value]
    feasible: bool
    on_front: bool
    scores: Mapping[str, ScoreDocument]
    seeds: int
    peak_gib: float | None
    footprint_gib: float | None
    predicted_gib: float | None
    seconds: float | None
    step_seconds: float | None
    throughput: float | None


class PeakDocument(TypedDict):
    """One measured peak."""

    phase: str
    kind: str
    rank: int
    gib: float


class TrialDetails(TrialDocument):
    """One trial with all that is known of it."""

    values: Mapping[str, Value]
    peaks: Sequence[PeakDocument]
    anatomy_gib: Mapping[str, float]
    steps: int
    parameters: int
    trained_parameters: int
    repeats: Sequence[Mapping[str, object]]
    outcome: Mapping[str, Any]
    log: str
    snapshot: str | None


class RunHead(TypedDict):
    """What a run is."""

    name: str
    folder: str
    status: str
    elapsed: float
    objective: str
    model: str
    data: str
    space: str
    sampler: str
    seed: int
    trials: int
    metric: str
    maximize: bool
    budget_gib: float
    limit_gib: float
    device: str


class PickDocument(TypedDict):
    """Numbers of the trials that are worth looking at first."""

    best_accuracy: int | None
    knee: int | None
    cheapest: int | None
    least_memory: int | None


class EffectDocument(TypedDict):
    """What one step of a knob did, averaged over matched pairs."""

    knob: str
    before: Value
    after: Value
    pairs: int
    peak_gib: float
    score: float
    exact: bool
    speed: float | None
    peak_error_gib: float | None
    score_error: float | None


class RunDocument(TypedDict):
    """`run`, `resume`, `show RUN`."""

    schema: int
    run: RunHead
    counts: Mapping[str, int]
    picks: PickDocument
    effects: Sequence[EffectDocument]
    front: Sequence[TrialDocument]


class FrontDocument(TypedDict):
    """`front`."""

    schema: int
    run: RunHead
    where: str | None
    picks: PickDocument
    trials: Sequence[TrialDocument]


class ShowDocument(TypedDict):
    """`show RUN/N`."""

    schema: int
    run: RunHead
    trial: TrialDetails


class WhyDocument(TypedDict):
    """`show RUN/N --why`."""

    schema: int
    run: RunHead
    trial: int
    peak_gib: float
    baseline: int | None
    baseline_gib: float | None
    shares: Sequence[Mapping[str, object]]


class CauseDocument(TypedDict):
    """Trials that did not complete for one cause."""

    cause: str
    trials: Sequence[int]
    detail: str
    help: str
    fix: str


class FailedDocument(TypedDict):
    """`show RUN --failed`."""

    schema: int
    run: RunHead
    causes: Sequence[CauseDocument]


class FileDocument(TypedDict):
    """A file that was written."""

    path: str
    bytes: int


class SectionDocument(TypedDict):
    """A section of the report, and why it is not there if it is not."""

    name: str
    declined: str | None


class ReportDocument(TypedDict):
    """`report`."""

    schema: int
    run: RunHead
    files: Sequence[FileDocument]
    sections: Sequence[SectionDocument]


class QuantityDocument(TypedDict):
    """One measured quantity of both sides of a comparison."""

    name: str
    a: float | None
    b: float | None
    difference: float | None
    error: float | None
    told: bool | None


class CompareDocument(TypedDict):
    """`compare`."""

    schema: int
    a: str
    b: str
    differs: Sequence[Mapping[str, str]]
    quantities: Sequence[QuantityDocument]
    notes: Sequence[str]


class QueryDocument(TypedDict):
    """`query`."""

    schema: int
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


class ErrorDocument(TypedDict):
    """What any command prints instead if it fails."""

    schema: int
    error: Mapping[str, object]


def error_document(error: AutotuneError) -> ErrorDocument:
    """Return the document of an error."""
    return {"schema": SCHEMA, "error": error.to_json()}


def run_document(run: Run, knobs: Sequence[Knob]) -> RunDocument:
    """Return the document of a whole run."""
    return {
        "schema": SCHEMA,
        "run": run_head(run),
        "counts": run.counts(),
        "picks": pick_document(run),
        "effects": [effect_document(e) for e in knob_effects(run.records, run.metric, knobs)],
        "front": [trial_document(record, knobs) for record in run.front()],
    }


def run_head(run: Run) -> RunHead:
    """Return what a run is."""
    spec, facts = run.spec, run.spec.facts
    kind, index = spec.device["kind"], spec.device.get("index", 0)
    return {
        "name": run.name,
        "folder": str(run.folder),
        "status": run.status,
        "elapsed": run.elapsed,
        "objective": facts.workload.objective,
        "model": facts.model.name,
        "data": facts.data,
        "space": spec.space,
        "sampler": spec.sampler,
        "seed": spec.seed,
        "trials": spec.trials,
        "metric": run.metric.name,
        "maximize": run.metric.maximize,
        "budget_gib": run.budget.total_bytes / GIB,
        "limit_gib": run.budget.limit_bytes / GIB,
        "device": str(kind) if kind == "cpu" else f"{kind}:{index}",
    }


def pick_document(run: Run) -> PickDocument:
    """Return the numbers of a run's picks."""
    picks = run.picks()
    return {
        "best_accuracy": picks.best_accuracy.number if picks.best_accuracy else None,
        "knee": picks.knee.number if picks.knee else None,
        "cheapest": picks.cheapest.number if picks.cheapest else None,
        "least_memory": picks.least_memory.number if picks.least_memory else None,
    }


def trial_document(record: TrialRecord, knobs: Sequence[Knob]) -> TrialDocument:
    """Return the document of one trial."""
    outcome = record.outcome
    measured = outcome.measurement if outcome else None
    return {
        "trial": record.number,
        "origin": record.origin.value,
        "status": outcome.tag if outcome else "running",
        "summary": outcome.summary if outcome else "",
        "differs": record.config.describe(knobs),
        "config": record.config.to_json(),
        "feasible": record.feasible,
        "on_front": record.on_front,
        "scores": _scores(record.scores),
        "seeds": record.seeds,
        "peak_gib": measured.peak_bytes / GIB or None if measured else None,
        "footprint_gib": measured.footprint_bytes / GIB or None if measured else None,
        "predicted_gib": record.rehearsed_bytes / GIB or None,
        "seconds": outcome.seconds if outcome else None,
        "step_seconds": measured.step_seconds or None if measured else None,
        "throughput": measured.throughput or None if measured else None,
    }


def trial_details(run: Run, record: TrialRecord, knobs: Sequence[Knob]) -> TrialDetails:
    """Return all that is known of a trial."""
    outcome = record.outcome
    measured = outcome.measurement if outcome else None
    rest = {k: v for k, v in outcome.to_json().items() if k != "measurement"} if outcome else {}
    snapshot = snapshot_path(run.folder, record.number)
    return {
        **trial_document(record, knobs),
        "values": record.config.complete(knobs),
        "peaks": [
            {"phase": p.phase.value, "kind": p.kind.value, "rank": p.rank, "gib": p.bytes / GIB}
            for p in (measured.peaks if measured else ())
        ],
        "anatomy_gib": {k: v / GIB for k, v in (measured.anatomy if measured else {}).items()},
        "steps": measured.steps if measured else 0,
        "parameters": measured.parameters if measured else 0,
        "trained_parameters": measured.trained_parameters if measured else 0,
        "repeats": [_repeat(again) for again in record.repeats],
        "outcome": rest,
        "log": str(run.log(record.number)),
        "snapshot": str(snapshot) if snapshot.is_file() else None,
    }


def _repeat(again: Repetition) -> dict[str, object]:
    outcome = again.outcome
    return {
        "seed": again.seed,
        "status": outcome.tag,
        "summary": outcome.summary,
        "scores": _scores(outcome.scores if isinstance(outcome, Completed) else {}),
        "peak_gib": outcome.measurement.peak_bytes / GIB or None,
        "seconds": outcome.seconds,
    }


def _scores(scores: Mapping[str, Score]) -> dict[str, ScoreDocument]:
    return {
        name: {"value": score.value, "stderr": score.stderr, "n": score.n}
        for name, score in scores.items()
    }


def effect_document(effect: Effect) -> EffectDocument:
    """Return the document of an effect."""
    return {
        "knob": effect.knob,
        "before": effect.before,
        "after": effect.after,
        "pairs": effect.pairs,
        "peak_gib": effect.peak_bytes / GIB,
        "score": effect.score,
        "exact": effect.exact,
        "speed": effect.speed,
        "peak_error_gib": None if effect.peak_error is None else effect.peak_error / GIB,
        "score_error": effect.score_error,
    }


def plain(value: object) -> object:
    """Return a document as JSON can hold it: numbers that are not finite become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if value is None or isinstance(value, str | int | bool):
        return value
    if isinstance(value, bytes):
        return value.hex()
    return str(value)
