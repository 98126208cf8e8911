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
from itertools import combinations

from autotune.core.domains import Choice, Value
from autotune.core.knob import Knob, Numerics
from autotune.core.outcome import Completed
from autotune.core.record import TrialRecord
from autotune.core.workload import Metric


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
    """

    knob: str
    before: Value
    after: Value
    pairs: int
    peak_bytes: float
    score: float
    exact: bool
    speed: float | None


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
    complete = [(r, r.config.complete(knobs)) for r in records if _has_score(r, metric)]
    pairs: dict[tuple[str, Value, Value], list[tuple[TrialRecord, TrialRecord]]] = {}
    for (first, a), (second, b) in combinations(complete, 2):
        differing = [knob for knob in knobs if a[knob.name] != b[knob.name]]
        if len(differing) != 1:
            continue
        knob = differing[0]
        one, other = (first, a), (second, b)
        if _rank(knob, a[knob.name]) > _rank(knob, b[knob.name]):
            one, other = other, one
        step = (knob.name, one[1][knob.name], other[1][knob.name])
        pairs.setdefault(step, []).append((one[0], other[0]))
    by_name = {knob.name: knob for knob in knobs}
    found = [_effect(by_name[s[0]], s, matched, metric) for s, matched in pairs.items()]
    return sorted(found, key=lambda effect: (effect.peak_bytes, effect.knob, str(effect.after)))


def _effect(
    knob: Knob,
    step: tuple[str, Value, Value],
    pairs: Sequence[tuple[TrialRecord, TrialRecord]],
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
    )


def _numbers(record: TrialRecord, metric: Metric) -> Mapping[str, float]:
    assert isinstance(record.outcome, Completed)
    measured = record.outcome.measurement
    score = record.outcome.scores[metric.name].value
    return {"peak": measured.peak_bytes, "score": score, "speed": measured.throughput}


def _has_score(record: TrialRecord, metric: Metric) -> bool:
    score = record.score(metric)
    return score is not None and math.isfinite(score.value)


def _rank(knob: Knob, value: Value) -> tuple[bool, float]:
    """Order values: neutral first, then as the domain lists them, or by distance from neutral."""
    if isinstance(knob.domain, Choice):
        return value != knob.neutral, float(knob.domain.values.index(value))
    return value != knob.neutral, abs(float(value) - float(knob.neutral))
