"""What should I use: one paragraph, and the trials worth looking at with the commands for each."""

from __future__ import annotations

import time
from dataclasses import dataclass

from autotune.core.pareto import NEAR
from autotune.core.record import Origin, TrialRecord
from autotune.core.units import format_duration, format_gb, gib
from autotune.report.cards.card import count, sentence
from autotune.report.cards.findings import (
    Findings,
    measured,
    peak_of,
    score_difference,
    score_of,
)
from autotune.report.summary import baseline_sentence, counts_sentence
from autotune.report.text import error_text, rate_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Pick:
    """A trial that is worth looking at.

    Attributes:
        roles: What it is: `Best score`.
        recommended: Whether it is the one to take first.
        number: Its number.
        metric: Name of its score.
        score: The score.
        error: Its standard error, empty if there is none.
        peak: Peak memory, in GiB.
        rate: Tokens per second.
        differs: What it changed against the baseline.
        export: The command that writes it as a training script.
        commands: Commands that show it and run it again.
    """

    roles: tuple[str, ...]
    recommended: bool
    number: int
    metric: str
    score: str
    error: str
    peak: str
    rate: str
    differs: str
    export: str
    commands: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The head of the report.

    Attributes:
        title: What was searched for.
        facts: What, where, when; a phrase each.
        sentences: The answer.
        picks: The trials worth looking at; none if no trial fits the budget.
    """

    title: str
    facts: tuple[str, ...]
    sentences: tuple[str, ...]
    picks: tuple[Pick, ...]


def verdict(findings: Findings) -> Verdict:
    """Return the head of the report."""
    run = findings.run
    objective = run.spec.facts.workload.objective.replace("_", " ")
    return Verdict(
        title=f"{sentence(objective)} within {format_gb(run.spec.budget_bytes)}",
        facts=_facts(findings),
        sentences=_sentences(findings),
        picks=_picks(findings),
    )


def _facts(findings: Findings) -> tuple[str, ...]:
    run = findings.run
    spec = run.spec
    ended = sum(not record.refused for record in run.records)
    version = spec.versions.get("autotune-memory", "")
    found = (
        run.name,
        spec.facts.model.name,
        str(spec.device.get("name") or spec.device.get("kind", "")),
        f"{count(ended, 'trial')} in {format_duration(run.elapsed)}",
        time.strftime("%d %b %Y", time.gmtime(run.started)).lstrip("0"),
        f"autotune {version}" if version else "",
        spec.facts.data,
    )
    return tuple(fact for fact in found if fact)


def _sentences(findings: Findings) -> tuple[str, ...]:
    run, picks = findings.run, findings.picks
    found = [baseline_sentence(run, findings.knobs)]
    if picks.knee is None or picks.best_accuracy is None:
        found += ["No trial completed within the budget, so there is nothing to recommend."]
        found += [f"`{findings.command('show', rest=' --failed')}` says why."]
        return tuple(text for text in [*found, counts_sentence(run)] if text)
    size = len(findings.front)
    if size == 1:
        found.append("One configuration beats all others in both score and memory.")
    else:
        held = sentence(count(size, "configuration"))
        found.append(f"{held} are beaten by no other in both score and memory.")
    best = picks.best_accuracy
    baseline = next((r for r in run.records if r.origin is Origin.BASELINE and r.feasible), None)
    if picks.knee is not best:
        found.append(_against(findings, "the best score", picks.knee, best))
    if baseline is not None and baseline.number not in (best.number, picks.knee.number):
        found.append(_against(findings, "the baseline", picks.knee, baseline))
    return tuple(text for text in found if text)


def _against(findings: Findings, what: str, knee: TrialRecord, other: TrialRecord) -> str:
    metric = findings.metric
    change = peak_of(knee) / peak_of(other) - 1
    difference, told = score_difference(knee, other, metric)
    doubt = "" if told else ", which this evaluation set cannot tell from no difference,"
    text = (
        f"Against {what}, the recommended one changes {metric.name} by {difference}{doubt} "
        f"and needs {abs(change):.0%} {'less' if change <= 0 else 'more'} memory"
    )
    here, there = measured(knee).throughput, measured(other).throughput
    if here > 0 and there > 0:
        text += f", at {here / there:.0%} of the speed"
    return f"{text}."


def _picks(findings: Findings) -> tuple[Pick, ...]:
    picks = findings.picks
    roles = (
        ("Best score", picks.best_accuracy),
        ("Recommended: knee", picks.knee),
        (f"Cheapest within {NEAR:.0%} of the best", picks.cheapest),
        ("Least memory", picks.least_memory),
    )
    called: dict[int, list[str]] = {}
    records: dict[int, TrialRecord] = {}
    for role, record in roles:
        if record is not None:
            called.setdefault(record.number, []).append(role)
            records[record.number] = record
    return tuple(_pick(findings, records[number], names) for number, names in called.items())


def _pick(findings: Findings, record: TrialRecord, roles: list[str]) -> Pick:
    metric, score = findings.metric, score_of(record, findings.metric)
    number = record.number
    error = "" if score.stderr is None else f"±{error_text(score.stderr, metric.digits)}"
    return Pick(
        roles=tuple(roles),
        recommended=findings.picks.knee is not None and number == findings.picks.knee.number,
        number=number,
        metric=metric.name,
        score=f"{score.value:.{metric.digits}f}",
        error=error,
        peak=gib(peak_of(record)),
        rate=rate_text(measured(record).throughput),
        differs=findings.label(record),
        export=findings.command("export", number, " --to hf"),
        commands=(findings.command("show", number), findings.command("replay", number)),
    )
