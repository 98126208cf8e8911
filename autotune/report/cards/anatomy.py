"""What is eating the memory: the anatomy of the front, measured at the peak of a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from autotune.core.outcome import ANATOMY_PARTS, Measurement, PeakKind, Phase
from autotune.core.record import TrialRecord
from autotune.core.units import GIB, format_gib
from autotune.report.cards.card import Card, Declined, Table
from autotune.report.cards.findings import Findings, measured, peak_of
from autotune.report.effects import Effect
from autotune.report.text import memory_text, signed

KEY, TITLE, SHORT = "memory", "Where the memory goes", "Memory"
PHASES: Mapping[Phase, str] = {
    Phase.LOAD: "while loading",
    Phase.FIRST: "in the first step",
    Phase.STEADY: "in a steady step",
    Phase.EVALUATE: "in evaluation",
}
"""How sentences call the phases of a trial."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A trial's memory at the peak of a steady step, by part, in GiB."""

    number: int
    parts: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Anatomy(Card):
    """Where the memory goes.

    Attributes:
        bars: A bar for each trial of the front, the best score first.
        parts: Parts that any of them has, in the order in which they are stacked.
        limit_gib: What a trial may need.
    """

    bars: tuple[Bar, ...]
    parts: tuple[str, ...]
    limit_gib: float


def anatomy_card(findings: Findings) -> Anatomy | Declined:
    """Return the anatomy of the front; declined if none of its trials has one."""
    records = [record for record in findings.front[::-1] if measured(record).anatomy]
    if not records:
        reason = "no trial of the front has an anatomy of its memory"
        return Declined(key=KEY, title=TITLE, short=SHORT, reason=reason)
    bars = tuple(
        Bar(number=r.number, parts={p: b / GIB for p, b in measured(r).anatomy.items()})
        for r in records
    )
    known = {part for bar in bars for part, amount in bar.parts.items() if amount >= 0.0005}
    order = [*ANATOMY_PARTS, *sorted(known - set(ANATOMY_PARTS))]
    parts = tuple(part for part in order if part in known)
    texts = (_measured_sentence(records), binding_sentence(findings), help_sentence(findings))
    return Anatomy(
        key=KEY,
        title=TITLE,
        short=SHORT,
        sentences=tuple(text for text in texts if text),
        tables=(_table(records, parts, findings),),
        bars=bars,
        parts=parts,
        limit_gib=findings.run.budget.limit_bytes / GIB,
    )


def binding_part(measurement: Measurement) -> tuple[str, float] | None:
    """Return the largest part at the peak and its share; None without an anatomy."""
    total = sum(measurement.anatomy.values())
    if total <= 0:
        return None
    part, amount = max(measurement.anatomy.items(), key=lambda item: item[1])
    return part, amount / total


def peak_phase(measurement: Measurement) -> Phase | None:
    """Return the phase that has the peak which the search minimises; None if none was measured."""
    kinds = (PeakKind.RESERVED, PeakKind.ALLOCATED)
    kind = next((kind for kind in kinds if measurement.peak(kind)), None)
    fitting = [
        peak
        for peak in measurement.peaks
        if peak.kind == kind and measurement.counted in ("", peak.phase)
    ]
    return max(fitting, key=lambda peak: peak.bytes).phase if fitting else None


def binding_sentence(findings: Findings) -> str:
    """Say what the recommended trial's memory is mostly; empty if that is not known."""
    knee = findings.picks.knee
    found = binding_part(measured(knee)) if knee else None
    if knee is None or found is None:
        return ""
    part, share = found
    text = f"In the recommended trial {knee.number}, {part} are the largest part: {share:.0%}"
    if not part.endswith("s"):
        text = f"In the recommended trial {knee.number}, {part} is the largest part: {share:.0%}"
    phase = peak_phase(measured(knee))
    if phase in (None, Phase.FIRST, Phase.STEADY):
        return f"{text} of what is there at the peak of a step."
    return (
        f"{text} of what is there at the peak of a step; its greatest peak of all, "
        f"{format_gib(peak_of(knee))}, comes {PHASES[phase]}."
    )


def helping_effect(findings: Findings, record: TrialRecord) -> Effect | None:
    """Return the measured step from a trial's own values that saves most memory.

    Steps that surely cost score come only if there are no others.
    """
    values = record.config.complete(findings.knobs)
    able = [e for e in findings.effects if values[e.knob] == e.before and e.peak_bytes < 0]
    harmless = [e for e in able if not _surely_worse(e, findings)]
    return min(harmless or able, key=lambda effect: effect.peak_bytes, default=None)


def _surely_worse(effect: Effect, findings: Findings) -> bool:
    if effect.exact:
        return False
    return findings.metric.loss(effect.score) > (effect.score_error or 0.0)


def help_sentence(findings: Findings) -> str:
    """Say which knob would help the recommended trial most; empty if there is no front."""
    knee = findings.picks.knee
    if knee is None:
        return ""
    effect = helping_effect(findings, knee)
    if effect is None:
        return (
            "Which knob would save most from there is not known: no two trials that differ in one "
            "knob only start from one of its values and end lower."
        )
    price = "at the same score, by promise"
    if not effect.exact:
        digits = findings.metric.digits
        price = f"with {findings.metric.name} {signed(effect.score, digits)} on average"
    lead = "The knob that would help it most, from measured pairs"
    if _surely_worse(effect, findings):
        lead = "No measured step from its values saves memory without costing score; the largest"
    text = (
        f"{lead}: {effect.knob} {effect.before} → {effect.after} saved "
        f"{format_gib(-effect.peak_bytes)} elsewhere, {price}"
    )
    phase = peak_phase(measured(knee))
    if phase in (Phase.LOAD, Phase.EVALUATE):
        return f"{text}; but its own greatest peak comes {PHASES[phase]}, where it may save less."
    return f"{text}."


def _measured_sentence(records: list[TrialRecord]) -> str:
    elsewhere = [
        r.number for r in records if peak_phase(measured(r)) in (Phase.LOAD, Phase.EVALUATE)
    ]
    text = "Measured at the moment of the peak in a steady training step, part by part."
    if not elsewhere:
        return text
    numbers = f"trial{'s' * (len(elsewhere) > 1)} {', '.join(map(str, elsewhere))}"
    return (
        f"{text} The greatest peak of {numbers} comes while loading or in evaluation, so the bar "
        "is shorter than the peak."
    )


def _table(records: list[TrialRecord], parts: tuple[str, ...], findings: Findings) -> Table:
    knee = findings.picks.knee
    rows = []
    for record in records:
        measurement = measured(record)
        phase = peak_phase(measurement)
        amounts = [measurement.anatomy.get(part, 0) for part in parts]
        cells = [memory_text(amount) if amount else "0" for amount in amounts]
        peak = memory_text(measurement.peak_bytes)
        rows.append((str(record.number), *cells, peak, PHASES[phase] if phase else "–"))
    marked = [i for i, record in enumerate(records) if knee and record.number == knee.number]
    return Table(
        caption="Memory of the front by part, in GiB",
        columns=("#", *parts, "peak", "which comes"),
        rows=tuple(rows),
        numbers=frozenset(range(len(parts) + 2)),
        marked=frozenset(marked),
    )
