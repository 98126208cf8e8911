"""`autotune front`: the trade-off as a table."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Literal

from cyclopts import Parameter
from rich.console import RenderableType
from rich.text import Text

from autotune.cli.options import Common, Flag, RunName, Storage
from autotune.core.domains import Value
from autotune.core.errors import BadValue
from autotune.core.expressions import Expression, compile_expression
from autotune.core.outcome import Completed
from autotune.core.pareto import Picks
from autotune.core.record import Origin, TrialRecord
from autotune.core.units import GIB
from autotune.knobs import BUILTIN
from autotune.report.document import (
    SCHEMA,
    FrontDocument,
    pick_document,
    run_head,
    trial_document,
)
from autotune.report.predicted import predicted_parts
from autotune.report.summary import front_table, front_title, pick_names
from autotune.report.text import Listing
from autotune.storage.run import Run

MEASURED = ("peak_gib", "footprint_gib", "seconds", "throughput", "step_seconds")
REFERENCES = ("best", "baseline")
EXAMPLE = 'autotune front --where "peak_gib <= 4 and accuracy >= best - 0.5%"'
_PERCENT = re.compile(
    rf"\b({'|'.join(REFERENCES)})\s*([-+])\s*(\d+(?:\.\d+)?)\s*%(?!\s*(?!and\b|or\b)[\w.(])"
)

_PICKS: Mapping[str, Callable[[Picks], TrialRecord | None]] = {
    "knee": lambda picks: picks.knee,
    "accuracy": lambda picks: picks.best_accuracy,
    "cheapest": lambda picks: picks.cheapest,
    "memory": lambda picks: picks.least_memory,
}


def front(
    run: RunName = None,
    /,
    *,
    where: Annotated[str | None, Parameter(metavar="EXPRESSION", show_default=False)] = None,
    all_: Annotated[bool, Parameter(name="--all"), Flag] = False,
    pick: Annotated[Literal["knee", "accuracy", "cheapest", "memory"] | None, Parameter()] = None,
    storage: Storage = None,
    common: Common = Common(),  # noqa: B008  (frozen; cyclopts fills in what was typed)
) -> None:
    """Show the trade-off between score and memory.

    Args:
        run: The run; by default the latest.
        where: Only trials for which this holds: "peak_gib <= 4 and accuracy >= best - 0.5%"; a
            percentage is one of the best score, or of the baseline's, before it.
        all_: Every trial that completed, also those off the front.
        pick: Only one trial: the knee, the best score, the cheapest within 1% of it, or the least
            memory.
        storage: SQLAlchemy URL of the study database, if it is not in the run's folder.
        common: Options of every command.
    """
    found = Run.open(run, results=common.results, storage=storage)
    chosen = [r for r in found.records if isinstance(r.outcome, Completed)] if all_ else None
    records = matching(found, found.front()[::-1] if chosen is None else chosen, where)
    whole = where is None and pick is None and not all_
    if pick is not None:
        best = _PICKS[pick](found.picks())
        records = [record for record in records if best and record.number == best.number]
    document: FrontDocument = {
        "schema": SCHEMA,
        "run": run_head(found),
        "where": where,
        "picks": pick_document(found),
        "trials": [trial_document(record, BUILTIN) for record in records],
    }
    options = common.where(storage)
    more = predicted_parts(found, BUILTIN) if whole else []
    parts = _screen(found, records, all_=all_, common=common)
    common.show(document, *parts, *more, Text(), _next(found, records, options))


def matching(run: Run, records: list[TrialRecord], where: str | None) -> list[TrialRecord]:
    """Return the trials for which an expression holds.

    Args:
        run: The run, for its metrics, its knobs, its best score and its baseline.
        records: Trials that completed.
        where: The expression; None for all.

    Raises:
        UnknownName: If it uses a name that there is not.
        BadValue: If it is no condition.
    """
    if where is None:
        return records
    metrics = [metric.name for metric in run.spec.facts.metrics]
    knobs = [knob.name for knob in BUILTIN]
    spelled = spell_percent(where)
    sizes = [f"{name}.size" for name in REFERENCES if f"{name}.size" in spelled]
    try:
        expression = compile_expression(spelled, [*metrics, *MEASURED, *REFERENCES, *sizes, *knobs])
    except BadValue as error:
        raise BadValue(
            error.message, where="--where", context=error.context, help=EXAMPLE
        ) from error
    if not expression.is_condition:
        raise BadValue(f"'{where}' is not true or false", where="--where", help=EXAMPLE)
    references = _references(run, expression)
    return [record for record in records if expression.holds(_values(record, references))]


def spell_percent(where: str) -> str:
    """Return an expression with `best - 0.5%` spelled out: 0.5 % of the size of the best score.

    The grammar reads `%` as the remainder of a division, so only a percentage that follows `best`
    or `baseline`, and that nothing follows to divide by, is one.
    """
    return _PERCENT.sub(
        lambda found: f"({found[1]} {found[2]} {float(found[3]) / 100:g} * {found[1]}.size)", where
    )


def _references(run: Run, expression: Expression) -> dict[str, Value]:
    """Return the best score and the baseline's, which an expression may compare with."""
    found: dict[str, Value] = {}
    best = run.picks().best_accuracy
    baseline = next((r for r in run.records if r.origin is Origin.BASELINE), None)
    for name, record in (("best", best), ("baseline", baseline)):
        score = record.score(run.metric) if record else None
        if score is not None:
            found[name] = score.value
            found[f"{name}.size"] = abs(score.value)
        elif name in expression.names:
            raise BadValue(
                f"'{name}' has no score in run '{run.name}', so nothing compares with it",
                where="--where",
                help=f"write a number: autotune front --where '{run.metric.name} >= …'",
            )
    return found


def _values(record: TrialRecord, references: Mapping[str, Value]) -> dict[str, Value]:
    assert isinstance(record.outcome, Completed)
    measured = record.outcome.measurement
    return {
        **record.config.complete(BUILTIN),
        "peak_gib": measured.peak_bytes / GIB,
        "footprint_gib": measured.footprint_bytes / GIB,
        "seconds": record.outcome.seconds,
        "throughput": measured.throughput,
        "step_seconds": measured.step_seconds,
        **references,
        **{name: score.value for name, score in record.scores.items()},
    }


def _screen(
    run: Run, records: list[TrialRecord], *, all_: bool, common: Common
) -> list[RenderableType]:
    if not records:
        total = len(run.front())
        empty = f"No trial of {run.name} matches." if total else f"{run.name} has no front yet."
        return [Text(empty)]
    title = f"Completed trials of {run.name}" if all_ else f"{front_title(run.metric)}, {run.name}"
    parts: list[RenderableType] = [Text(title, style="bold"), Text()]
    parts.append(front_table(run, records, BUILTIN, width=common.out.width))
    picked = _picked(run, records)
    if picked and len(records) > 1:
        words = "   ".join(f"{record.number} {name}" for name, record in picked.items())
        parts += [Text(), Text(words)]
    return parts


def _picked(run: Run, records: list[TrialRecord]) -> dict[str, TrialRecord]:
    """Return the picks that are shown, by what they are called."""
    shown = {record.number for record in records}
    return {n: r for n, r in pick_names(run.picks()).items() if r.number in shown}


def _next(run: Run, records: list[TrialRecord], options: str) -> Listing:
    record = next(iter(_picked(run, records).values()), records[0]) if records else None
    rows = []
    if record is not None:
        command = f"autotune show {run.name}/{record.number}{options}"
        rows.append((command, "one configuration, where its memory goes"))
        rows.append((f"autotune front {run.name}{options} --all", "also what is off the front"))
        rows.append((f"autotune report {run.name}{options}", "the full story as one HTML file"))
    else:
        rows.append((f"autotune show {run.name}{options}", "what came of its trials"))
    return Listing("Next", rows)
