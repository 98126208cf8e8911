"""What each knob did: trials that differ in one knob only, paired and averaged.

A search varies many knobs at once, so comparing averages of all trials with and without a value
would mix the knob with its company. Two trials that differ in exactly one knob differ because of
it; the mean over all such pairs is the effect of that step. It needs no model and no assumption,
and it is missing where the search made no such pair.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product

from autotune.core.domains import Choice, Value
from autotune.core.knob import Knob, Numerics
from autotune.core.outcome import Completed
from autotune.core.record import TrialRecord
from autotune.core.workload import Metric
from autotune.report.intervals import mean_error, score_error


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """What one step of one knob did, averaged over matched pairs.

    Attributes:
        knob: Name of the knob.
        before: The value nearer to neutral.
        after: The other one.
        pairs: Number of pairs.
        peak_bytes: Mean difference of peaks.
        score: Mean difference of scores; exactly 0 by promise if `exact`.
        exact: Whether the knob promises the same loss.
        speed: Mean ratio of tokens per second, less 1; None if it was not measured.
        peak_error: Half width of the 95 % interval of the mean difference of peaks; None with one
            pair.
        score_error: The same of scores; with one pair, from the standard errors of the two.
    """

    knob: str
    before: Value
    after: Value
    pairs: int
    peak_bytes: float
    score: float
    exact: bool
    speed: float | None
    peak_error: float | None = None
    score_error: float | None = None


Pair = tuple[TrialRecord, TrialRecord]
"""Two trials that differ in one knob only, the one nearer to neutral first."""


def knob_effects(
    records: Sequence[TrialRecord], metric: Metric, knobs: Sequence[Knob]
) -> list[Effect]:
    """Return the effect of every step of a knob for which there is a matched pair.

    Args:
        records: The trials; those that did not complete are ignored.
        metric: What is searched for.
        knobs: Every knob.

    Returns:
        Effects by descending saving of memory.
    """
    by_name = {knob.name: knob for knob in knobs}
    matched = matched_pairs(records, metric, knobs)
    found = [_effect(by_name[step[0]], step, pairs, metric) for step, pairs in matched.items()]
    return sorted(found, key=lambda effect: (effect.peak_bytes, effect.knob, str(effect.after)))


def matched_pairs(
    records: Sequence[TrialRecord], metric: Metric, knobs: Sequence[Knob]
) -> dict[tuple[str, Value, Value], list[Pair]]:
    """Return pairs of completed trials that differ in one knob only, by `(knob, before, after)`.

    Args:
        records: The trials; those that did not complete are ignored.
        metric: What is searched for.
        knobs: Every knob.
    """
    alike: dict[tuple[str, frozenset[tuple[str, Value]]], list[TrialRecord]] = {}
    complete = [record for record in records if _has_score(record, metric)]
    for record, knob in product(complete, knobs):
        rest = frozenset(item for item in record.config.items() if item[0] != knob.name)
        alike.setdefault((knob.name, rest), []).append(record)
    by_name = {knob.name: knob for knob in knobs}
    pairs: dict[tuple[str, Value, Value], list[Pair]] = {}
    for (name, _), members in alike.items():
        for pair in combinations(members, 2):
            values = [record.config.get(name, by_name[name].neutral) for record in pair]
            if values[0] == values[1]:
                continue
            turned = _rank(by_name[name], values[0]) > _rank(by_name[name], values[1])
            (one, other), (before, after) = (pair[::-1], values[::-1]) if turned else (pair, values)
            pairs.setdefault((name, before, after), []).append((one, other))
    return pairs


def differing(a: TrialRecord, b: TrialRecord, knobs: Sequence[Knob]) -> tuple[str, ...]:
    """Return the names of the knobs in which two trials differ."""
    one, other = a.config.complete(knobs), b.config.complete(knobs)
    return tuple(name for name, value in one.items() if value != other[name])


def _effect(
    knob: Knob,
    step: tuple[str, Value, Value],
    pairs: Sequence[Pair],
    metric: Metric,
) -> Effect:
    peaks, scores, speeds = [], [], []
    for before, after in pairs:
        old, new = _numbers(before, metric), _numbers(after, metric)
        peaks.append(new["peak"] - old["peak"])
        scores.append(new["score"] - old["score"])
        if old["speed"] > 0 and new["speed"] > 0:
            speeds.append(new["speed"] / old["speed"] - 1.0)
    return Effect(
        knob=knob.name,
        before=step[1],
        after=step[2],
        pairs=len(pairs),
        peak_bytes=statistics.fmean(peaks),
        score=statistics.fmean(scores),
        exact=knob.numerics is Numerics.EXACT,
        speed=statistics.fmean(speeds) if speeds else None,
        peak_error=mean_error(peaks),
        score_error=_score_error(pairs, scores, metric),
    )


def _score_error(
    pairs: Sequence[Pair], differences: Sequence[float], metric: Metric
) -> float | None:
    if len(pairs) > 1:
        return mean_error(differences)
    return score_error(pairs[0][0].score(metric), pairs[0][1].score(metric))


def _numbers(record: TrialRecord, metric: Metric) -> Mapping[str, float]:
    assert isinstance(record.outcome, Completed)
    measured = record.outcome.measurement
    score = record.scores[metric.name].value
    return {"peak": measured.peak_bytes, "score": score, "speed": measured.throughput}


def _has_score(record: TrialRecord, metric: Metric) -> bool:
    score = record.score(metric)
    return score is not None and math.isfinite(score.value)


def _rank(knob: Knob, value: Value) -> tuple[bool, float]:
    """Order values: neutral first, then as the domain lists them, or by distance from neutral."""
    if isinstance(knob.domain, Choice):
        return value != knob.neutral, float(knob.domain.values.index(value))
    return value != knob.neutral, abs(float(value) - float(knob.neutral))
