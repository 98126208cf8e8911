"""Why did it crash: what did not complete by cause, and the smallest change that would have fit."""

from __future__ import annotations

from dataclasses import dataclass

from autotune.report.cards.card import Card, Declined, Table, count, sentence
from autotune.report.cards.findings import Findings
from autotune.report.failures import Cause, causes

KEY, TITLE, SHORT = "failures", "What failed", "Failures"
_LISTED = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Failures(Card):
    """What did not complete.

    Attributes:
        causes: Trials by cause, the most frequent first.
    """

    causes: tuple[Cause, ...]


def failures_card(findings: Findings) -> Failures | Declined:
    """Return what did not complete; declined if everything did."""
    run = findings.run
    found = causes(run.records, run.name, findings.options, findings.knobs)
    if not found:
        reason = "every trial that ended completed within the budget"
        return Declined(key=KEY, title=TITLE, short=SHORT, reason=reason)
    total = sum(len(cause.records) for cause in found)
    return Failures(
        key=KEY,
        title=TITLE,
        short=SHORT,
        sentences=(
            f"{sentence(count(total, 'trial'))} of {len(run.records)} did not complete within the "
            f"budget, for {count(len(found), 'cause')}. "
            f"`{findings.command('show', rest=' --failed')}` shows the same.",
        ),
        tables=(_table(found),),
        causes=tuple(found),
    )


def _table(found: list[Cause]) -> Table:
    rows = []
    for cause in found:
        numbers = [str(record.number) for record in cause.records]
        more = [f"… {len(numbers) - _LISTED} more"] if len(numbers) > _LISTED else []
        what = "; ".join(text for text in (cause.detail, cause.fix or cause.help) if text)
        rows.append((cause.cause, ", ".join([*numbers[:_LISTED], *more]), what))
    return Table(
        caption="Trials that did not complete, by cause",
        columns=("cause", "trials", "what is known, and what to do"),
        rows=tuple(rows),
    )
