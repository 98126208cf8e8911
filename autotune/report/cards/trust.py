"""Is it noise: predictions against measurements, the growth of the front, repeats."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from autotune.cluster import ENGINES, engine_of
from autotune.core.outcome import OutOfMemory
from autotune.core.pareto import front, hypervolume, reference_point
from autotune.core.record import TrialRecord
from autotune.core.units import GIB, format_gib
from autotune.report.cards.card import Card, Declined, count, sentence
from autotune.report.cards.findings import Findings, peak_of, value_of
from autotune.search.seeds import optimism, repeats_sentence, seed_values

KEY, TITLE, SHORT = "trust", "Can I trust it?", "Trust"
STILL_GROWING = 0.01
"""Share of the final hypervolume that the last quarter of trials must add to call for more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """A trial's predicted and measured peak, in GiB.

    `ran_out` marks one that ran out of memory: its measured peak is what it needed at least.
    """

    number: int
    predicted: float
    measured: float
    ran_out: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust(Card):
    """What speaks for and against the numbers.

    Attributes:
        predictions: Trials that were rehearsed.
        growth: Hypervolume after each trial, as a share of the final one; by trial number.
    """

    predictions: tuple[Prediction, ...]
    growth: tuple[tuple[int, float], ...]


def trust_card(findings: Findings) -> Trust | Declined:
    """Return what speaks for and against the numbers; declined if nothing was scored."""
    if not findings.completed():
        reason = "no trial has a score"
        return Declined(key=KEY, title=TITLE, short=SHORT, reason=reason)
    predictions, grown = _predictions(findings), growth(findings)
    texts = (
        _prediction_sentence(predictions),
        _growth_sentence(findings, grown),
        _repeat_sentence(findings),
        _exact_sentence(findings),
        _winner_sentence(findings),
        repeats_sentence(findings.run.records, findings.metric, findings.knobs),
    )
    return Trust(
        key=KEY,
        title=TITLE,
        short=SHORT,
        sentences=tuple(text for text in texts if text),
        predictions=predictions,
        growth=grown,
    )


def growth(findings: Findings) -> tuple[tuple[int, float], ...]:
    """Return the hypervolume after each trial, as a share of the final one."""
    records, metric = findings.run.records, findings.metric
    reference = reference_point(records, metric)
    if reference is None:
        return ()
    # A budget far above all trials would make what memory they save count for nothing.
    greatest = max(peak_of(r) for r in records if r.point(metric) is not None)
    reference = (reference[0], min(reference[1], 1.05 * greatest))
    found: list[tuple[int, float]] = []
    best: list[TrialRecord] = []
    for record in records:
        if record.feasible and value_of(record, metric) is not None:
            best = front([*best, record], metric)
        points = [point for member in best if (point := member.point(metric)) is not None]
        found.append((record.number, hypervolume(points, reference)))
    last = found[-1][1]
    return tuple((number, volume / last) for number, volume in found) if last > 0 else ()


def _predictions(findings: Findings) -> tuple[Prediction, ...]:
    found = []
    for record in findings.run.records:
        if not record.rehearsed_bytes or record.outcome is None or record.refused:
            continue
        ran_out = isinstance(record.outcome, OutOfMemory)
        amount = record.outcome.needed_bytes if isinstance(record.outcome, OutOfMemory) else 0
        amount = amount or (peak_of(record) if record.score(findings.metric) else 0)
        if amount:
            found.append(
                Prediction(
                    number=record.number,
                    predicted=record.rehearsed_bytes / GIB,
                    measured=amount / GIB,
                    ran_out=ran_out,
                )
            )
    return tuple(found)


def _prediction_sentence(predictions: tuple[Prediction, ...]) -> str:
    held = [p for p in predictions if not p.ran_out]
    if not held:
        return "No trial was rehearsed, so predictions cannot be held against measurements."
    errors = [p.predicted / p.measured - 1 for p in held]
    worst = max(held, key=lambda p: abs(p.predicted / p.measured - 1))
    return (
        f"The rehearsal predicted the peak of {count(len(held), 'trial')} with a median error of "
        f"{statistics.median(map(abs, errors)):.1%}; the farthest, trial {worst.number}, was "
        f"predicted at {format_gib(worst.predicted * GIB)} and measured at "
        f"{format_gib(worst.measured * GIB)}."
    )


def _growth_sentence(findings: Findings, grown: tuple[tuple[int, float], ...]) -> str:
    if len(grown) < 4:
        return ""
    before = [0.0, *(share for _, share in grown)]
    changed = [number for i, (number, share) in enumerate(grown) if share > before[i] + 1e-12]
    earlier = grown[len(grown) * 3 // 4 - 1][1]
    text = (
        f"The front last grew at trial {changed[-1]} of {grown[-1][0]}; the last quarter of trials "
        f"added {1 - earlier:.1%} of its hypervolume"
    )
    if 1 - earlier >= STILL_GROWING:
        more = findings.command("resume", rest=" --trials +20")
        return f"{text}, so more trials may well find better ones: `{more}`"
    return f"{text}, so more trials of this space would likely bring little."


def _repeat_sentence(findings: Findings) -> str:
    groups: dict[str, list[TrialRecord]] = {}
    for record in findings.completed():
        groups.setdefault(record.config.fingerprint, []).append(record)
    repeated = [group for group in groups.values() if len(group) > 1]
    if not repeated and any(record.repeats for record in findings.run.records):
        return _seed_sentence(findings)
    if not repeated:
        return (
            "No configuration was trained twice, so the spread over seeds is not known; standard "
            "errors are over the evaluation set alone."
        )
    spread = max(_spread(findings, group) for group in repeated)
    peaks = max(max(map(peak_of, g)) / min(map(peak_of, g)) - 1 for g in repeated)
    return (
        f"{sentence(count(len(repeated), 'configuration'))} trained more than once differed by at "
        f"most {spread:.{findings.metric.digits}f} in {findings.metric.name} and {peaks:.1%} in "
        "peak memory."
    )


def _seed_sentence(findings: Findings) -> str:
    metric = findings.metric
    groups = [seed_values(record, metric) for record in findings.run.records if record.seeds > 1]
    if not groups:
        return "No trial completed with a further seed, so the spread over seeds is not known."
    spread = max(max(values) - min(values) for values in groups)
    return (
        f"{sentence(count(len(groups), 'trial'))} trained with several seeds differed by at most "
        f"{spread:.{metric.digits}f} in {metric.name} between them; the score shown is the mean, "
        "with the errors of the evaluation set and of the seeds together."
    )


def _exact_sentence(findings: Findings) -> str:
    groups: dict[str, list[TrialRecord]] = {}
    for record in findings.completed():
        groups.setdefault(record.config.accuracy_key(findings.knobs), []).append(record)
    alike = [g for g in groups.values() if len({r.config.fingerprint for r in g}) > 1]
    if not alike:
        return ""
    spread = max(_spread(findings, group) for group in alike)
    return (
        f"In {count(len(alike), 'group')} of trials that differ in exact knobs only, and so should "
        f"score the same, {findings.metric.name} differs by at most "
        f"{spread:.{findings.metric.digits}f}."
    )


def _winner_sentence(findings: Findings) -> str:
    best, tried = findings.picks.best_accuracy, len(findings.completed())
    if best is None or tried < 2:
        return ""
    if above := optimism(findings.run.records, findings.metric):
        mean, digits = statistics.fmean(above), findings.metric.digits
        side = "better" if mean >= 0 else "worse"
        return (
            f"Whatever looks best among {tried} noisy scores is optimistic by chance: the first "
            f"scores of {count(len(above), 'trial')} on the front were "
            f"{abs(mean):.{digits}f} {side} on average than their means over seeds, and by up to "
            f"{max(above):.{digits}f}."
        )
    if engine_of(findings.run.spec) == ENGINES[0]:
        again = findings.command("resume", rest=" --repeats auto")
    else:
        again = findings.command("replay", best.number, " --seeds 3")
    return (
        f"The best score is the greatest of {tried} noisy ones, and so is optimistic by chance. "
        f"Trained again with other seeds it may fall: "
        f"`{again}`"
    )


def _spread(findings: Findings, group: list[TrialRecord]) -> float:
    firsts = (record.first_score(findings.metric) for record in group)
    values = [score.value for score in firsts if score is not None]
    return max(values) - min(values)
