"""What stays on the screen when a run has ended: the answer, then how it came about.

Counts, the baseline, three configurations worth looking at, what each knob did, the front, and what
to type next; in this order, since the first is what was asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from autotune.core.knob import Knob
from autotune.core.outcome import Completed, OutOfMemory, Refused
from autotune.core.pareto import NEAR, Picks
from autotune.core.record import Origin, TrialRecord
from autotune.core.units import GIB, format_duration, format_gib
from autotune.core.workload import Metric
from autotune.report.cards.anatomy import binding_sentence, help_sentence, helping_effect
from autotune.report.cards.findings import Findings
from autotune.report.cards.next_gb import next_gb_sentence
from autotune.report.effects import Effect
from autotune.report.failures import failed
from autotune.report.predicted import predicted_parts
from autotune.report.text import (
    ROWS,
    WIDE,
    Column,
    Listing,
    make_table,
    signed,
    trials_table,
)
from autotune.search.seeds import repeats_sentence
from autotune.storage.run import Run

STATES: Mapping[str, str] = {
    "completed": "completed",
    "out-of-memory": "out of memory",
    "paused": "paused on the way",
    "refused": "refused before they started",
    "stopped": "stopped early",
    "diverged": "diverged",
    "crashed": "crashed",
    "timed-out": "timed out",
    "running": "running",
    "interrupted": "interrupted",
}
"""How sentences call the states of trials, in the order in which they are counted."""


def summary(run: Run, knobs: Sequence[Knob], *, width: int, options: str = "") -> RenderableType:
    """Return the final screen of a run.

    Args:
        run: The run.
        knobs: Every knob, in order.
        width: Columns of the screen.
        options: What has to be added to a command for it to find the run.
    """
    parts: list[RenderableType] = [Text(counts_sentence(run))]
    baseline = baseline_sentence(run, knobs)
    if baseline:
        parts.append(Text(baseline))
    front = run.front()[::-1]
    if not front:
        parts.append(Text("No trial completed within the budget."))
    else:
        parts += [Text(), _heading("Configurations worth looking at"), Text()]
        findings = Findings.of(run, knobs, options)
        parts.append(trials_table((), run.metric, knobs, names=pick_names(findings.picks)))
        parts += _advice(findings)
        parts += _effects(findings)
        parts += [Text(), _heading(front_title(run.metric)), Text()]
        parts.append(front_table(run, front[:ROWS], knobs, width=width))
        if len(front) > ROWS:
            parts.append(Text(f"… {len(front) - ROWS} more: autotune front {run.name}{options}"))
        if repeats := repeats_sentence(run.records, run.metric, knobs):
            parts += [Text(), Text(repeats)]
        parts += predicted_parts(run, knobs)
    parts += [Text(), next_steps(run, options)]
    return Group(*parts)


def front_title(metric: Metric) -> str:
    """Return the heading of a front."""
    return f"The front: {metric.name} against peak memory"


def front_table(
    run: Run, records: Sequence[TrialRecord], knobs: Sequence[Knob], *, width: int
) -> RenderableType:
    """Return trials as a table, with bars of the budget where there is room."""
    budget = run.budget if width >= WIDE else None
    return trials_table(records, run.metric, knobs, budget=budget)


def counts_sentence(run: Run) -> str:
    """Say how many trials ended how: 46 completed, 4 out of memory."""
    counts = run.counts()
    known = [(name, counts[state]) for state, name in STATES.items() if counts.get(state)]
    rest = [(state, count) for state, count in counts.items() if state not in STATES]
    ends = ", ".join(f"{count} {name}" for name, count in known + rest) or "none started"
    total = sum(count for state, count in counts.items() if state != Refused.tag)
    return f"{total} trial{'s' * (total != 1)} in {format_duration(run.elapsed)}: {ends}."


def baseline_sentence(run: Run, knobs: Sequence[Knob]) -> str:
    """Say what became of the baseline; empty if it was not tried."""
    record = next((r for r in run.records if r.origin is Origin.BASELINE), None)
    if record is None or record.outcome is None:
        return ""
    differences = record.config.describe(knobs)
    name = "The baseline" if differences == "baseline" else f"The baseline ({differences})"
    limit = format_gib(run.budget.limit_bytes)
    match record.outcome:
        case Completed(scores=scores) if record.feasible and run.metric.name in scores:
            score = f"{scores[run.metric.name].value:.{run.metric.digits}f}"
            peak = format_gib(record.outcome.measurement.peak_bytes)
            return f"{name} reaches {run.metric.name} {score} with a peak of {peak}."
        case Completed():
            need = format_gib(record.outcome.measurement.footprint_bytes)
            return f"{name} needs {need} and does not fit into {limit}."
        case Refused(needed_bytes=needed):
            need = format_gib(needed)
            return f"{name} is predicted to need {need} and does not fit into {limit}."
        case OutOfMemory(needed_bytes=needed) if needed:
            return f"{name} needs at least {format_gib(needed)} and does not fit into {limit}."
    return f"{name} has no score: {record.outcome.summary}."


def pick_names(picks: Picks) -> dict[str, TrialRecord]:
    """Return the picks by what they are called; one that is several things gets one row."""
    roles = (
        ("best score", picks.best_accuracy),
        ("knee", picks.knee),
        (f"within {NEAR:.0%}", picks.cheapest),
        ("least memory", picks.least_memory),
    )
    names: dict[int, list[str]] = {}
    for role, record in roles:
        # That the best score is the cheapest within 1 % of itself goes without saying.
        if record is not None and not (record is picks.best_accuracy and role.startswith("within")):
            names.setdefault(record.number, []).append(role)
    records = {record.number: record for _, record in roles if record is not None}
    return {_called(parts): records[number] for number, parts in names.items()}


def _called(roles: Sequence[str]) -> str:
    if len(roles) == 3:
        return "best in everything"
    return "recommended: knee" if roles == ["knee"] else ", ".join(roles)


def next_steps(run: Run, options: str = "") -> Listing:
    """Return what to type next."""
    name = run.name
    rows = []
    if run.status in ("interrupted", "failed"):
        rows.append((f"autotune resume {name}{options}", "continue where it stopped"))
    pick = run.picks().knee
    if pick is not None:
        rows.append((f"autotune front {name}{options}", "the whole trade-off as a table"))
        rows.append((f"autotune show {name}/{pick.number}{options}", "where its memory goes"))
        rows.append((f"autotune report {name}{options}", "the full story as one HTML file"))
    bad = failed(run.records)
    if bad:
        what = f"the {len(bad)} that did not fit or finish, by cause"
        rows.append((f"autotune show {name} --failed{options}", what))
    rows.append((f'autotune query --run {name}{options} "select * from trials"', "ask in SQL"))
    if run.status == "done":
        rows.append((f"autotune resume {name}{options} --trials +20", "search on"))
    return Listing("Next", rows)


def effects_table(
    effects: Sequence[Effect], metric: Metric, knobs: Sequence[Knob]
) -> RenderableType:
    """Return what each step of a knob did, as a table."""
    columns = (
        Column("knob"),
        Column("peak GiB", "right"),
        Column(metric.name, "right"),
        Column("tok/s", "right"),
        Column("pairs", "right"),
    )
    return make_table(columns, [_effect_row(effect, metric) for effect in effects])


def _advice(findings: Findings) -> list[RenderableType]:
    """Say what the next GB buys, and what the memory of the recommended trial is mostly."""
    known = helping_effect(findings, findings.picks.knee) if findings.picks.knee else None
    texts = (
        next_gb_sentence(findings) if len(findings.front) > 1 else "",
        binding_sentence(findings),
        help_sentence(findings) if known else "",
    )
    shown = [Text(text) for text in texts if text]
    return [Text(), *shown] if shown else []


def _effects(findings: Findings) -> list[RenderableType]:
    effects, run, knobs = findings.effects, findings.run, findings.knobs
    if not effects:
        sentence = "No two completed trials differ in one knob only, so no effect can be told."
        return [Text(), Text(sentence)]
    shown: list[RenderableType] = [
        Text(),
        _heading("What each knob did, averaged over matched pairs"),
        Text(),
        effects_table(effects[:ROWS], run.metric, knobs),
    ]
    if len(effects) > ROWS:
        shown.append(Text(f"… {len(effects) - ROWS} more with less effect on memory"))
    return shown


def _effect_row(effect: Effect, metric: Metric) -> tuple[str, ...]:
    return (
        f"{effect.knob} {effect.before} → {effect.after}",
        signed(effect.peak_bytes / GIB, 3 if abs(effect.peak_bytes) < GIB else 2),
        "exact" if effect.exact else signed(effect.score, metric.digits),
        "–" if effect.speed is None else f"{signed(100 * effect.speed, 0)}%",
        str(effect.pairs),
    )


def _heading(text: str) -> Text:
    return Text(text, style="bold")
