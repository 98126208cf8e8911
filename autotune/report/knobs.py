"""What a check of the knobs found: a screen, a document, and the guide's table made from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from autotune.ablation import Difference, broken_promises
from autotune.core.knob import Knob, Numerics
from autotune.core.outcome import Completed
from autotune.core.units import GIB
from autotune.report.document import SCHEMA
from autotune.report.text import Column, make_table


def check_document(
    differences: Sequence[Difference], about: Mapping[str, object]
) -> dict[str, object]:
    """Return a check as one JSON document.

    Args:
        differences: What was measured.
        about: What it was measured on: workload, device, versions.
    """
    return {
        "schema": SCHEMA,
        **about,
        "values": [_row(difference) for difference in differences],
        "broken_promises": broken_promises(differences),
    }


def check_screen(differences: Sequence[Difference], metric: str) -> list[RenderableType]:
    """Return a check as a table, one line per value, and the promises that were broken."""
    columns = (
        Column("value", folds=True),
        Column("peak GiB", "right"),
        Column("peak", "right"),
        Column("in eval", "right"),
        Column("time", "right"),
        Column(metric, "right"),
    )
    measured = [d for d in differences if d.case.config is not None]
    rows = [_cells(difference) for difference in measured]
    blocked = [d for d in differences if d.case.config is None]
    broken = broken_promises(differences)
    parts: list[RenderableType] = [make_table(columns, rows), Text()]
    if blocked:
        parts.append(Text(f"Blocked here: {len(blocked)} values"))
        parts += [
            Text(f"  {d.case.knob.name}={d.case.value}: {d.case.reason}", style="dim")
            for d in blocked
        ]
        parts.append(Text())
    if not broken:
        return [*parts, Text("Every knob that could be tried does what its name says.")]
    parts.append(Text("Knobs that do not do what their name says here"))
    return [*parts, *(Text(f"  ✗ {name} {sentence}") for name, sentence in broken.items())]


def knob_guide(document: Mapping[str, Any], knobs: Sequence[Knob]) -> str:
    """Return the guide's page of knobs, in Markdown, from the document of a recorded check.

    Args:
        document: As `check_document` made it.
        knobs: Every knob, in order.
    """
    workload, device = document["workload"], document["device"]
    lines = [
        "# Knobs: technique, when to use it, what it measured",
        "",
        "Generated from a recorded check; do not edit. Each value was trained beside the same",
        "configuration without it. *Peak* is memory while training, *in eval* that of the trained",
        f"model; *{document['metric']}* is the difference of scores with its standard error.",
        f"Measured on {device['name'] or device['kind']}, {workload['model']}, {workload['data']},",
        f"in trainings of {workload.get('steps', 0)} steps; the scores of so short ones are rough.",
        "",
        "`autotune knobs check` measures the same on your machine and your model.",
        "",
    ]
    for knob in knobs:
        lines += _knob_section(knob, document)
    return "\n".join(lines).rstrip() + "\n"


def _knob_section(knob: Knob, document: Mapping[str, Any]) -> list[str]:
    rows = [row for row in document["values"] if row["knob"] == knob.name]
    promise = {
        Numerics.EXACT: "exact: same loss and gradients, to rounding",
        Numerics.CLOSE: "close: same dynamics, other rounding",
        Numerics.LOSSY: "lossy: another model or another optimum",
    }[knob.numerics]
    lines = [
        f"## `{knob.name}`",
        "",
        knob.help,
        "",
        f"Values: {knob.domain.describe()} (neutral: {knob.neutral}). Promise: {promise}.",
    ]
    if broken := document["broken_promises"].get(knob.name):
        lines += ["", f"**It {broken}.**", ""]
    if knob.references:
        lines.append(f"References: {'; '.join(knob.references)}.")
    measured = [row for row in rows if row["outcome"] == "completed"]
    if measured:
        lines += ["", "| value | beside | peak | in eval | time per step | score |"]
        lines.append("|---|---|---:|---:|---:|---:|")
        lines += [_markdown_row(row) for row in measured]
    for row in rows:
        if row["reason"]:
            lines += ["", f"`{row['value']}` was not measured: {row['reason']}."]
    return [*lines, ""]


def _markdown_row(row: Mapping[str, Any]) -> str:
    beside = ", ".join(f"{name}={value}" for name, value in row["beside"].items()) or "baseline"
    score = "–" if row["score"] is None else f"{row['score']:+.3f} ±{row['score_error'] or 0:.3f}"
    shares = " | ".join(percent(row[n]) for n in ("peak_share", "eval_share", "time_share"))
    return f"| {row['value']} | {beside} | {shares} | {score} |"


def percent(share: float | None) -> str:
    """Print a difference as `−12%`, with a sign of its own; `–` if it is not known."""
    if share is None:
        return "–"
    return f"{share:+.0%}".replace("-", "−")


def _row(difference: Difference) -> dict[str, object]:
    case = difference.case
    peer = case.peer
    return {
        "knob": case.knob.name,
        "value": case.value,
        "beside": peer.to_json() if peer is not None else {},
        "reason": case.reason,
        "outcome": difference.outcome.tag if difference.outcome else None,
        "peak_bytes": difference.peak_bytes,
        "peak_share": difference.peak_share,
        "eval_share": difference.eval_share,
        "resident_share": difference.resident_share,
        "time_share": difference.time_share,
        "score": difference.score,
        "score_error": difference.score_error,
        "saves": difference.saves,
        "exact": case.knob.numerics is Numerics.EXACT,
    }


def _cells(difference: Difference) -> tuple[str, ...]:
    case = difference.case
    beside = "".join(f", beside {n}={v}" for n, v in (case.peer or {}).items())
    first = f"{case.knob.name}={case.value}{beside}"
    if not isinstance(difference.outcome, Completed) or difference.peak_bytes is None:
        said = difference.outcome.summary if difference.outcome else ""
        return (f"{first}: {said}", "–", "–", "–", "–", "–")
    error = difference.score_error
    score = f"{difference.score:+.3f}" + (f" ±{error:.3f}" if error is not None else "")
    return (
        first,
        f"{difference.peak_bytes / GIB:+.3f}".replace("-", "−"),
        percent(difference.peak_share),
        percent(difference.eval_share),
        percent(difference.time_share),
        score.replace("-", "−"),
    )
