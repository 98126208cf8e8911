"""What the next GB buys: the steps along the front, and what each of them brings."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from autotune.core.outcome import OutOfMemory, Refused
from autotune.core.record import TrialRecord
from autotune.core.units import GIB, format_gib
from autotune.report.cards.card import Card, Declined, Table, count, sentence
from autotune.report.cards.findings import Findings, peak_of, score_difference, score_of
from autotune.report.text import signed

KEY, TITLE, SHORT = "next-gb", "What the next GB buys", "Next GB"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """From one trial of the front to the next larger one.

    Attributes:
        before: Number of the smaller.
        after: Number of the larger.
        gib: Memory more.
        score: Score more, or less where less is better.
        shown: The score's difference with its 95 % interval.
        told: Whether that interval excludes zero.
    """

    before: int
    after: int
    gib: float
    score: float
    shown: str
    told: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class NextGb(Card):
    """Steps up the front.

    Attributes:
        steps: Every step, from the least memory on.
    """

    steps: tuple[Step, ...]


def next_gb_card(findings: Findings) -> NextGb | Declined:
    """Return the steps up the front; declined if it has one trial or none."""
    if len(findings.front) < 2:
        reason = f"the front has {count(len(findings.front), 'trial')}, so there is no step on it"
        return Declined(key=KEY, title=TITLE, short=SHORT, reason=reason)
    steps = front_steps(findings)
    return NextGb(
        key=KEY,
        title=TITLE,
        short=SHORT,
        sentences=tuple(text for text in (next_gb_sentence(findings), _beyond(findings)) if text),
        tables=(_table(findings, steps),),
        steps=steps,
    )


def front_steps(findings: Findings) -> tuple[Step, ...]:
    """Return the steps from each trial of the front to the next larger one."""
    return tuple(_step(findings, before, after) for before, after in pairwise(findings.front))


def next_gb_sentence(findings: Findings) -> str:
    """Say what the step above the recommended trial buys; empty if there is no front."""
    knee = findings.picks.knee
    if knee is None:
        return ""
    step = next((s for s in front_steps(findings) if s.before == knee.number), None)
    name = findings.metric.name
    if step is None:
        return (
            f"The recommended trial {knee.number} has the best score too: more memory buys nothing "
            "that this search has found."
        )
    more = format_gib(step.gib * GIB)
    doubt = "" if step.told else "; this evaluation set cannot tell it from no difference"
    return (
        f"Above the recommended trial {knee.number}, the next {more} buy {step.shown} {name} "
        f"(trial {step.after}){doubt}."
    )


def _step(findings: Findings, before: TrialRecord, after: TrialRecord) -> Step:
    metric = findings.metric
    shown, told = score_difference(after, before, metric)
    return Step(
        before=before.number,
        after=after.number,
        gib=(peak_of(after) - peak_of(before)) / GIB,
        score=score_of(after, metric).value - score_of(before, metric).value,
        shown=shown,
        told=told,
    )


def _table(findings: Findings, steps: tuple[Step, ...]) -> Table:
    digits = findings.metric.digits
    knee = findings.picks.knee
    rows = [
        (
            f"{step.before} → {step.after}",
            signed(step.gib, 3 if step.gib < 1 else 2),
            step.shown,
            signed(step.score / step.gib, digits if abs(step.score / step.gib) < 10 else 0),
            "yes" if step.told else "no",
        )
        for step in steps
    ]
    marked = [i for i, step in enumerate(steps) if knee and step.before == knee.number]
    return Table(
        caption="Steps up the front, from the least memory on",
        columns=("trials", "GiB more", findings.metric.name, "per GiB", "told from noise"),
        rows=tuple(rows),
        numbers=frozenset(range(4)),
        marked=frozenset(marked),
    )


def _beyond(findings: Findings) -> str:
    """Say what is known of configurations that did not fit."""
    needs = [
        outcome.needed_bytes
        for record in findings.run.records
        if isinstance(outcome := record.outcome, OutOfMemory | Refused) and outcome.needed_bytes
    ]
    if not needs:
        return "No trial needed more than the budget, so a larger one would have changed nothing."
    were = "was" if len(needs) == 1 else "were"
    return (
        f"{sentence(count(len(needs), 'configuration'))} {were} too large and {were} not scored; "
        f"the smallest of them needs about {format_gib(min(needs))}, so that is the budget from "
        "which on this search could find more."
    )
