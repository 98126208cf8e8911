"""What do I give up: every trial by memory and score, the front among them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from autotune.core.outcome import OutOfMemory, Refused
from autotune.core.record import TrialRecord
from autotune.core.units import GIB, format_gib
from autotune.report.cards.card import Card, Declined, Table, count, sentence
from autotune.report.cards.findings import Findings, measured, peak_of, score_of, value_of
from autotune.report.predicted import HEADING, predicted, predicted_rows
from autotune.report.text import memory_text, rate_text, score_text

KEY, TITLE, SHORT = "trade-off", "The trade-off", "Trade-off"
WIDE_RANGE = 8.0
"""From this ratio of the greatest to the least memory on, a logarithmic scale tells more."""

State = Literal["front", "dominated", "over", "out of memory", "refused"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A trial in the picture.

    Attributes:
        number: Its number.
        state: What became of it; `over` completed, but over the budget.
        gib: Its peak; what it needed, or was predicted to need, if it has none.
        score: Its score, None if it has none.
        stderr: Standard error of the score.
        differs: What it changed against the baseline.
    """

    number: int
    state: State
    gib: float
    score: float | None
    stderr: float | None
    differs: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TradeOff(Card):
    """The trade-off.

    Attributes:
        marks: Every trial that can be drawn; those of the front by ascending memory.
        metric: Name of the score.
        maximize: Whether more of it is better.
        limit_gib: What a trial may need.
        budget_gib: The budget, headroom included.
        shows_budget: Whether the budget is near enough to the trials to be drawn.
        logarithmic: Whether memory is best drawn on a logarithmic scale.
        recommended: Number of the knee.
    """

    marks: tuple[Mark, ...]
    metric: str
    maximize: bool
    limit_gib: float
    budget_gib: float
    shows_budget: bool
    logarithmic: bool
    recommended: int


def tradeoff_card(findings: Findings) -> TradeOff | Declined:
    """Return the trade-off; declined if no trial fits the budget."""
    knee = findings.picks.knee
    if knee is None:
        reason = "no trial completed within the budget, so there is no trade-off to draw"
        return Declined(key=KEY, title=TITLE, short=SHORT, reason=reason)
    marks = _marks(findings)
    amounts = [mark.gib for mark in marks]
    limit = findings.run.budget.limit_bytes / GIB
    return TradeOff(
        key=KEY,
        title=TITLE,
        short=SHORT,
        sentences=_sentences(findings, marks),
        tables=(front_rows(findings), *_predicted(findings)),
        marks=marks,
        metric=findings.metric.name,
        maximize=findings.metric.maximize,
        limit_gib=limit,
        budget_gib=findings.run.budget.total_bytes / GIB,
        shows_budget=limit <= 2 * max(amounts),
        logarithmic=max(amounts) > WIDE_RANGE * min(amounts),
        recommended=knee.number,
    )


def front_rows(findings: Findings) -> Table:
    """Return the front as a table, the best score first."""
    metric, budget, knee = findings.metric, findings.run.budget, findings.picks.knee
    records = findings.front[::-1]
    rows = [
        (
            str(record.number),
            score_text(score_of(record, metric), metric),
            memory_text(peak_of(record)),
            f"{measured(record).footprint_bytes / budget.total_bytes:.0%}",
            rate_text(measured(record).throughput),
            findings.label(record),
        )
        for record in records
    ]
    marked = [i for i, record in enumerate(records) if knee and record.number == knee.number]
    return Table(
        caption="The front, the best score first",
        columns=("#", metric.name, "peak GiB", "of budget", "tok/s", "differs from the baseline"),
        rows=tuple(rows),
        numbers=frozenset(range(5)),
        marked=frozenset(marked),
    )


def _predicted(findings: Findings) -> tuple[Table, ...]:
    """Return what was not run, but is predicted to join the front; no table if there is nothing."""
    found = predicted(findings.run)
    if not found:
        return ()
    rows = predicted_rows(findings.run, found, findings.knobs)
    columns = ("as trial", findings.metric.name, "peak GiB", "differs from the baseline")
    return (
        Table(
            caption=HEADING,
            columns=columns,
            rows=tuple(tuple(row) for row in rows),
            numbers=frozenset(range(3)),
        ),
    )


def _marks(findings: Findings) -> tuple[Mark, ...]:
    front = {record.number for record in findings.front}
    found = [
        _mark(findings, record, on_front=record.number in front) for record in findings.run.records
    ]
    return tuple(sorted((m for m in found if m is not None), key=lambda mark: mark.gib))


def _mark(findings: Findings, record: TrialRecord, *, on_front: bool) -> Mark | None:
    state: State
    match record.outcome:
        case OutOfMemory(needed_bytes=needed) if needed:
            state, amount = "out of memory", needed
        case Refused(needed_bytes=needed) if needed:
            state, amount = "refused", needed
        case _ if value_of(record, findings.metric) is not None and peak_of(record):
            feasible: State = "front" if on_front else "dominated"
            state, amount = feasible if record.feasible else "over", peak_of(record)
        case _:
            return None
    score = record.score(findings.metric)
    return Mark(
        number=record.number,
        state=state,
        gib=amount / GIB,
        score=score.value if score else None,
        stderr=score.stderr if score else None,
        differs=findings.label(record),
    )


def _sentences(findings: Findings, marks: tuple[Mark, ...]) -> tuple[str, ...]:
    side = "above and to the left of" if findings.metric.maximize else "below and to the left of"
    scored = sum(mark.score is not None for mark in marks)
    repeated = any(record.repeats for record in findings.run.records)
    seeds = ", and over seeds where a trial was repeated" if repeated else ""
    found = [
        f"{sentence(count(scored, 'completed trial'))}; no trial lies {side} the line. Bars are "
        f"one standard error of the score over the evaluation set{seeds}."
    ]
    crosses = [mark for mark in marks if mark.state in ("out of memory", "refused")]
    if crosses:
        found.append(
            f"Crosses mark {count(len(crosses), 'trial')} without a score, at the memory that was "
            "needed at least, or predicted."
        )
    return (*found, _budget_sentence(findings))


def _budget_sentence(findings: Findings) -> str:
    budget = findings.run.budget
    used = max(measured(record).footprint_bytes for record in findings.front)
    share = used / budget.limit_bytes
    text = (
        f"The budget allows {format_gib(budget.limit_bytes)}; "
        f"the front needs up to {format_gib(used)} of it ({share:.0%}), counted strictly"
    )
    return f"{text}." if share >= 0.5 else f"{text}: a much smaller budget would have done."
