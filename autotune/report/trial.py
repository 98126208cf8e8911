"""One trial in full: what it changed, what it scored, where its memory went, how it ended."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from autotune.core.domains import Value
from autotune.core.knob import Knob
from autotune.core.outcome import (
    Completed,
    Crashed,
    Measurement,
    OutOfMemory,
    PeakKind,
    Phase,
    Refused,
)
from autotune.core.record import TrialRecord
from autotune.core.units import MIB, format_duration, format_gib
from autotune.report.failures import Cause
from autotune.report.text import (
    Column,
    Listing,
    bar,
    error_text,
    make_table,
    memory_text,
    rate_text,
    score_text,
)
from autotune.report.why import estimate_command
from autotune.storage.places import snapshot_path
from autotune.storage.run import Run

LOG_LINES = 10
_ESCAPE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")


def trial_screen(
    run: Run, record: TrialRecord, knobs: Sequence[Knob], *, options: str = ""
) -> RenderableType:
    """Return everything that is known of a trial.

    Args:
        run: The run.
        record: The trial.
        knobs: Every knob, in order.
        options: What has to be added to a command for it to find the run.
    """
    title = f"{run.name}/{record.number}  {record.config.describe(knobs)}"
    parts: list[RenderableType] = [Text(title, style="bold"), Text(_end_sentence(run, record))]
    parts += _section("Differs from the baseline", _differences(record, knobs))
    if isinstance(record.outcome, Completed):
        parts += _section("Scores", _scores(run, record))
    if record.repeats:
        parts += _section("By seed; scores above are their mean", _seeds(run, record))
    if record.rungs:
        parts += _section("Where it paused", _rungs(run, record))
    if record.outcome is not None:
        measured = record.outcome.measurement
        if measured.peaks:
            parts += _section("Peak memory by phase, GiB", _peaks(measured))
        if measured.anatomy:
            parts += _section("At the peak of a training step", _anatomy(measured))
        if measured.steps:
            parts += [Text(), Text(_speed(measured))]
    parts += _ending(record)
    snapshot = snapshot_path(run.folder, record.number)
    if snapshot.is_file():
        parts += [Text(), Text(snapshot_sentence(snapshot))]
    log = run.log(record.number)
    tail = log_tail(log)
    if tail:
        parts += _section(f"End of {log}", Text("\n".join(tail), style="dim"))
    parts += [Text(), _next(run, record, options)]
    return Group(*parts)


def causes_screen(causes: Sequence[Cause], run: Run, *, options: str = "") -> RenderableType:
    """Return trials that did not complete, grouped by cause."""
    if not causes:
        return Text(f"Every trial of {run.name} that ended completed within the budget.")
    parts: list[RenderableType] = []
    for cause in causes:
        numbers = ", ".join(str(record.number) for record in cause.records[:20])
        more = len(cause.records) - 20
        parts.append(Text(f"{len(cause.records)}  {cause.cause}", style="bold"))
        lines = [f"trials {numbers}{f', and {more} more' if more > 0 else ''}"]
        lines += [text for text in (cause.detail, cause.fix) if text]
        parts += [Padding(Text("\n".join([*lines, cause.help])), (0, 0, 1, 3), expand=False)]
    rows = [(f"autotune report {run.name}{options}", "the full story as one HTML file")]
    return Group(*parts, Listing("Next", rows))


def snapshot_sentence(path: Path) -> str:
    """Say where torch's own snapshot of a trial's memory lies, and what reads it."""
    return f"torch's own snapshot of one step: {path}; drop it on https://pytorch.org/memory_viz"


def log_tail(path: Path, lines: int = LOG_LINES) -> list[str]:
    """Return the last lines of a trial's log, without escape codes; none if there is no log."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            last = deque(file, maxlen=lines)
    except OSError:
        return []
    plain = (_ESCAPE.sub("", line).rstrip() for line in last)
    return ["".join(c for c in line if c.isprintable() or c == "\t") for line in plain]


def _end_sentence(run: Run, record: TrialRecord) -> str:
    outcome = record.outcome
    if outcome is None:
        return "It has not ended."
    end = outcome.summary[:1].upper() + outcome.summary[1:]
    front = ", on the front" if any(r.number == record.number for r in run.front()) else ""
    return f"{end}; {format_duration(outcome.seconds)} in all{front}."


def _differences(record: TrialRecord, knobs: Sequence[Knob]) -> RenderableType:
    changed: Mapping[str, Value] = record.config
    known = {knob.name: knob for knob in knobs}
    if not changed:
        return Text("nothing: this is the baseline")
    rows = [
        (name, str(changed[name]), str(known[name].neutral) if name in known else "–")
        for name in [*(n for n in known if n in changed), *(n for n in changed if n not in known)]
    ]
    return make_table((Column("knob"), Column("here"), Column("baseline")), rows)


def _rungs(run: Run, record: TrialRecord) -> RenderableType:
    metric = run.metric
    rows = [
        (
            rung.label,
            f"{rung.step} of {rung.steps}",
            score_text(rung.scores.get(metric.name), metric),
            format_duration(rung.seconds),
        )
        for rung in record.rungs
    ]
    columns = (
        Column("of the training"),
        Column("step", "right"),
        Column(metric.name, "right"),
        Column("after", "right"),
    )
    return make_table(columns, rows)


def _seeds(run: Run, record: TrialRecord) -> RenderableType:
    metric, first = run.metric, run.spec.facts.workload.seed
    ends = [(first, record.outcome, record.first_score(metric))]
    ends += [(again.seed, again.outcome, again.score(metric)) for again in record.repeats]
    rows = [
        (
            str(seed),
            score_text(score, metric),
            memory_text(outcome.measurement.peak_bytes if outcome else 0),
            outcome.summary if outcome else "",
        )
        for seed, outcome, score in ends
    ]
    columns = (Column("seed", "right"), Column(metric.name, "right"))
    return make_table((*columns, Column("peak GiB", "right"), Column("ended", folds=True)), rows)


def _scores(run: Run, record: TrialRecord) -> RenderableType:
    digits = {metric.name: metric.digits for metric in run.spec.facts.metrics}
    rows = []
    for name, score in record.scores.items():
        shown = digits.get(name, 3)
        error = "–" if score.stderr is None else f"±{error_text(score.stderr, shown)}"
        rows.append((name, f"{score.value:.{shown}f}", error, str(score.n or "–")))
    columns = (Column("metric"), Column("score", "right"), Column("stderr", "right"))
    return make_table((*columns, Column("over", "right")), rows)


def _peaks(measured: Measurement) -> RenderableType:
    kinds = [kind for kind in PeakKind if any(peak.kind is kind for peak in measured.peaks)]
    rows = [
        (phase.value, *(memory_text(measured.peak(kind, phase)) for kind in kinds))
        for phase in Phase
        if any(peak.phase is phase for peak in measured.peaks)
    ]
    return make_table((Column("phase"), *(Column(kind.value, "right") for kind in kinds)), rows)


def _anatomy(measured: Measurement) -> RenderableType:
    total = sum(measured.anatomy.values()) or 1
    rows = [
        (part, memory_text(amount), f"{amount / total:.0%}", bar(amount / total, 24))
        for part, amount in measured.anatomy.items()
        if amount >= MIB
    ]
    columns = (Column("part"), Column("GiB", "right"), Column("share", "right"), Column(""))
    return make_table(columns, rows)


def _speed(measured: Measurement) -> str:
    trained = measured.trained_parameters / max(1, measured.parameters)
    return (
        f"{measured.steps} steps of {measured.step_seconds:.3f} s, "
        f"{rate_text(measured.throughput)} tokens per second; "
        f"{trained:.1%} of {measured.parameters:,} parameters trained"
    )


def _ending(record: TrialRecord) -> list[RenderableType]:
    match record.outcome:
        case OutOfMemory(needed_bytes=needed, message=message):
            need = f"at least {format_gib(needed)} needed, " if needed else ""
            limit = f"{need}the limit is {format_gib(record.limit_bytes)}"
            said: list[RenderableType] = [Text(message)] if message else []
            return [Text(), Text(limit[0].upper() + limit[1:] + "."), *said]
        case Refused(needed_bytes=needed, least_bytes=least):
            refused = (
                f"Its rehearsal needs {format_gib(needed)} (at least {format_gib(least)}), and the "
                f"limit is {format_gib(record.limit_bytes)}: it was not started."
            )
            return [Text(), Text(refused)]
        case Crashed(traceback=traceback) if traceback:
            return _section("Traceback", Text(traceback.strip()))
        case Completed() if not record.feasible:
            need = format_gib(record.outcome.measurement.footprint_bytes)
            limit = format_gib(record.limit_bytes)
            return [Text(), Text(f"It needed {need}, more than the limit of {limit}.")]
    return []


def _next(run: Run, record: TrialRecord, options: str) -> Listing:
    sql = f"select * from memory where trial = {record.number}"
    rows = []
    if isinstance(record.outcome, Completed) and record.config:
        why = f"autotune show {run.name}/{record.number} --why{options}"
        rows.append((why, "which knob saves how much"))
    if isinstance(record.outcome, Refused):
        rows.append((estimate_command(run, record), "where its memory would go"))
    rows.append((f"autotune front {run.name}{options}", "the trade-off it is part of"))
    rows.append((f'autotune query --run {run.name}{options} "{sql}"', "its peaks"))
    return Listing("Next", rows)


def _section(title: str, body: RenderableType) -> list[RenderableType]:
    return [Text(), Text(title, style="bold"), Text(), body]
