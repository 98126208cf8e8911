"""Which techniques are worth it: paired differences with their intervals."""

from __future__ import annotations

from dataclasses import dataclass

from autotune.core.units import GIB
from autotune.report.cards.card import Card, Declined, Table, count, sentence
from autotune.report.cards.findings import Findings
from autotune.report.effects import Effect
from autotune.report.text import signed

KEY, TITLE, SHORT = "knobs", "What each knob did", "Knobs"
DRAWN = 14
"""Most steps that the figure shows; the table has all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Knobs(Card):
    """What each knob did.

    Attributes:
        effects: Steps that are drawn, the greatest saving of memory first.
        metric: Name of the score.
    """

    effects: tuple[Effect, ...]
    metric: str


def knobs_card(findings: Findings) -> Knobs | Declined:
    """Return what each knob did; declined if no two trials differ in one knob only."""
    effects = findings.effects
    if not effects:
        reason = (
            "no two completed trials differ in one knob only, so no effect can be told apart from "
            "those of other knobs; more trials make such pairs more likely"
        )
        return Declined(key=KEY, title=TITLE, short=SHORT, reason=reason)
    return Knobs(
        key=KEY,
        title=TITLE,
        short=SHORT,
        sentences=_sentences(effects),
        tables=(_table(findings),),
        effects=tuple(sorted(effects, key=lambda e: -abs(e.peak_bytes))[:DRAWN]),
        metric=findings.metric.name,
    )


def step_name(effect: Effect) -> str:
    """Name a step of a knob: `precision fp32 → bf16`."""
    return f"{effect.knob} {effect.before} → {effect.after}"


def _sentences(effects: tuple[Effect, ...]) -> tuple[str, ...]:
    pairs = sum(effect.pairs for effect in effects)
    found = [
        f"Mean differences over {count(pairs, 'matched pair')} of trials that differ in one knob "
        "only; bars are 95 % intervals. A knob marked exact promises the same score, which the "
        "tests of knobs hold it to."
    ]
    single = sum(effect.pairs == 1 for effect in effects)
    if single:
        which = "Each step was" if single == len(effects) else f"{count(single, 'step')} of "
        if single < len(effects):
            which += f"{len(effects)} {'was' if single == 1 else 'were'}"
        found.append(
            f"{sentence(which)} seen in one pair only: there, the interval of the score comes from "
            "the two standard errors, and memory has none."
        )
    return tuple(found)


def _table(findings: Findings) -> Table:
    digits = findings.metric.digits
    rows = []
    for effect in findings.effects:
        score = "exact" if effect.exact else _between(effect.score, effect.score_error, digits)
        memory_digits = 3 if abs(effect.peak_bytes) < GIB else 2
        error = None if effect.peak_error is None else effect.peak_error / GIB
        memory = _between(effect.peak_bytes / GIB, error, memory_digits)
        speed = "–" if effect.speed is None else f"{signed(100 * effect.speed, 0)} %"
        rows.append((step_name(effect), memory, score, speed, str(effect.pairs)))
    return Table(
        caption="What each step of a knob did, the greatest saving of memory first",
        columns=("knob", "peak GiB", findings.metric.name, "tok/s", "pairs"),
        rows=tuple(rows),
        numbers=frozenset((1, 2, 3, 4)),
    )


def _between(value: float, error: float | None, digits: int) -> str:
    text = signed(value, digits)
    return text if error is None else f"{text} ±{error:.{digits}f}"
