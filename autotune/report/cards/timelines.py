"""Memory over one step: what comes and goes, part by part, in the trials worth looking at.

The rest of the report is measured; this is rehearsed, since nothing can watch every allocation of a
real step and leave it as it was. So the card says how far each rehearsal is from what its trial
measured in the same phase.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autotune.core.outcome import PeakKind, Phase
from autotune.core.record import TrialRecord
from autotune.core.units import format_gib, gib
from autotune.memory.timeline import Timeline
from autotune.report.cards.anatomy import PHASES, peak_phase
from autotune.report.cards.card import Card, Declined, Table
from autotune.report.cards.findings import Findings, measured
from autotune.report.text import memory_text, signed
from autotune.timelines import MOST_TRIALS, read_timeline, shown

KEY, TITLE, SHORT = "timeline", "Memory over one step", "One step"
_STAGES = ("forward", "backward", "optimizer")
_WHAT = {
    "steady": "a steady training step",
    "first": "the only training step",
    "evaluate": "a batch of the evaluation",
}
_OPERATORS = ("aten.", "torch_", "torchao.", "prims.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """A trial's memory over one step.

    Attributes:
        number: The trial.
        title: How its figure is called.
        timeline: What was rehearsed.
        measured_bytes: What the trial measured in the same phase; 0 if nothing.
    """

    number: int
    title: str
    timeline: Timeline
    measured_bytes: int

    @property
    def error(self) -> float | None:
        """By how much the rehearsal is above what was measured, as a share of that."""
        if not self.measured_bytes:
            return None
        return self.timeline.peak_bytes / self.measured_bytes - 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Timelines(Card):
    """Memory over one step.

    Attributes:
        courses: The trials that have a timeline, the best score first.
    """

    courses: tuple[Course, ...]


def timelines_card(findings: Findings) -> Timelines | Declined:
    """Return the timelines of the front; declined if none is kept."""
    wanted = shown(findings.run.records, findings.metric)
    front = {record.number: place for place, record in enumerate(findings.front)}
    wanted.sort(key=lambda record: -front[record.number])
    found = {r.number: read_timeline(findings.run.folder, r.number) for r in wanted}
    courses = tuple(
        Course(
            number=record.number,
            title=_title(record, findings),
            timeline=timeline,
            measured_bytes=measured(record).peak(PeakKind.ALLOCATED, Phase(timeline.phase)),
        )
        for record in wanted
        if isinstance(timeline := found[record.number], Timeline)
    )
    reasons = {n: reason for n, reason in found.items() if isinstance(reason, str)}
    if not courses:
        return Declined(key=KEY, title=TITLE, short=SHORT, reason=_declined(reasons, findings))
    texts = (
        _rehearsed_sentence(courses),
        _error_sentence(courses),
        _knee_sentence(courses, findings),
        _elsewhere_sentence(wanted, courses),
        *_missing_sentences(reasons),
        _more_sentence(findings),
    )
    return Timelines(
        key=KEY,
        title=TITLE,
        short=SHORT,
        sentences=tuple(text for text in texts if text),
        tables=(_table(courses, findings),),
        courses=courses,
    )


def _title(record: TrialRecord, findings: Findings) -> str:
    knee = findings.picks.knee
    recommended = " (recommended)" if knee and record.number == knee.number else ""
    return f"Trial {record.number}{recommended}: {findings.label(record)}"


def _declined(reasons: dict[int, str], findings: Findings) -> str:
    if not reasons:
        return "no trial fits the budget"
    named = {number: reason for number, reason in reasons.items() if reason}
    if named:
        number, reason = next(iter(named.items()))
        others = f"; so it is with {len(reasons) - 1} more" if len(reasons) > 1 else ""
        return f"trial {number}: {reason.rstrip('.')}{others}"
    return (
        "no timeline was made; where model and data are there, "
        f"`{findings.command('report')}` makes it"
    )


def _rehearsed_sentence(courses: Sequence[Course]) -> str:
    phases = list(dict.fromkeys(course.timeline.phase for course in courses))
    what = " or ".join(_WHAT.get(phase, phase) for phase in phases)
    return (
        f"Rehearsed, not measured: {what} of each trial was followed on tensors without values, "
        "every allocation and every free in order. A rehearsal knows no time, so figures go from "
        "event to event; drag to zoom in, click twice to go back."
    )


def _error_sentence(courses: Sequence[Course]) -> str:
    errors = {c.number: c.error for c in courses if c.error is not None}
    if not errors:
        return "None of these trials measured its tensors in that phase to compare with."
    worst = max(errors, key=lambda number: abs(errors[number]))
    if abs(errors[worst]) < 0.0005:
        return "Each peak is within 0.05% of what its trial measured in the same phase."
    side = "above" if errors[worst] > 0 else "below"
    text = f"is {abs(errors[worst]):.1%} {side} what it measured in the same phase"
    if len(errors) == 1:
        return f"The rehearsed peak of trial {worst} {text}."
    return f"The rehearsed peak that is furthest off, of trial {worst}, {text}."


def _knee_sentence(courses: Sequence[Course], findings: Findings) -> str:
    knee = findings.picks.knee
    course = next((c for c in courses if knee and c.number == knee.number), None)
    if course is None:
        return ""
    timeline, before = course.timeline, course.timeline.totals[0]
    operator = timeline.operator
    after = f", after `{operator}`" if operator.startswith(_OPERATORS) else ""
    stage = {"optimizer": "the optimizer step"}.get(timeline.peak_stage, timeline.peak_stage)
    rest = timeline.peak_bytes - before
    text = (
        f"In the recommended trial {course.number}, the peak of {format_gib(timeline.peak_bytes)} "
        f"comes in {stage}{after}: {format_gib(before)} are there before the step"
    )
    more = {p: column[timeline.peak_moment] - column[0] for p, column in timeline.parts.items()}
    largest = sorted((p for p in more if more[p] > 0), key=lambda part: -more[part])[:2]
    if not largest:
        return f"{text}."
    named = " and ".join(f"{format_gib(more[part])} {part}" for part in largest)
    return f"{text}; of the {format_gib(rest)} more, most are {named}."


def _elsewhere_sentence(records: Sequence[TrialRecord], courses: Sequence[Course]) -> str:
    """Say whose greatest peak a timeline does not show."""
    timed = {course.number: Phase(course.timeline.phase) for course in courses}
    training = {Phase.FIRST, Phase.STEADY}
    found: dict[str, list[str]] = {}
    for record in records:
        phase = peak_phase(measured(record)) if record.number in timed else None
        own = timed.get(record.number)
        if phase is not None and phase != own and not {phase, own} <= training:
            found.setdefault(PHASES[phase], []).append(str(record.number))
    texts = [
        f"The greatest peak of trial{'s' * (len(numbers) > 1)} {', '.join(numbers)} comes {when}, "
        "which is not shown here."
        for when, numbers in found.items()
    ]
    return " ".join(texts)


def _missing_sentences(reasons: dict[int, str]) -> list[str]:
    """Say which trials have no timeline, those of one reason together."""
    found: dict[str, list[str]] = {}
    for number, reason in reasons.items():
        found.setdefault(reason, []).append(str(number))
    return [
        f"No timeline of trial{'s' * (len(numbers) > 1)} {', '.join(numbers)}: "
        f"{(reason or 'none was made').rstrip('.')}."
        for reason, numbers in found.items()
    ]


def _more_sentence(findings: Findings) -> str:
    more = len(findings.front) - MOST_TRIALS
    if more <= 0:
        return ""
    return f"The picks and others, {MOST_TRIALS} in all; {more} more of the front have none."


def _table(courses: Sequence[Course], findings: Findings) -> Table:
    knee = findings.picks.knee
    stages = [s for s in _STAGES if any(s in c.timeline.peaks for c in courses)]
    rows = []
    for course in courses:
        timeline = course.timeline
        totals = timeline.totals
        most = [memory_text(timeline.peaks.get(stage, 0)) for stage in stages]
        error = "–" if course.error is None else f"{signed(100 * course.error, 2)}%"
        rows.append(
            (
                str(course.number),
                gib(totals[0]),
                *most,
                gib(totals[-1]),
                gib(timeline.peak_bytes),
                memory_text(course.measured_bytes),
                error,
            )
        )
    marked = [i for i, course in enumerate(courses) if knee and course.number == knee.number]
    heads = ("#", "before it", *(f"most in {stage}" for stage in stages), "after it")
    columns = (*heads, "rehearsed peak", "measured peak", "differs by")
    return Table(
        caption="Live tensors over one step, in GiB",
        columns=columns,
        rows=tuple(rows),
        numbers=frozenset(range(len(columns))),
        marked=frozenset(marked),
    )
