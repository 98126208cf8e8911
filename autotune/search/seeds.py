"""Which trial near the front is to be trained with a further seed.

A front is a choice of the best of many noisy scores, so that luck gets on it. What decides is the
order of neighbours: of two on the front, whether the larger one really scores better, and of a
trial that is beaten, whether the one that beats it really does. All are evaluated on the same
examples, so that only the scatter between seeds can turn an order. It is estimated from all repeats
together; before there are any the standard error of the evaluation stands in for it, and counts
like `PRIOR` repeats. An order is settled when the difference of both means is greater than the
half width of its 95 % interval; until then, of whoever is in an open pair, the one with the
greatest standard error is repeated, which is the one with the fewest seeds.

Trials that differ in EXACT knobs only have one accuracy by promise: there is nothing to settle,
unless one is on the front above the other because it has kept the luck of fewer seeds.

References:
    Kim and Nelson 2006, "Selecting the best system" (indifference, sequential sampling of the
    contenders only); Fisher 1935, "The design of experiments" (the pooled standard deviation).
"""

from __future__ import annotations

import bisect
import math
import statistics
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from autotune.core.errors import BadValue
from autotune.core.knob import Knob
from autotune.core.outcome import Completed
from autotune.core.pareto import front
from autotune.core.record import TrialRecord
from autotune.core.seeds import student
from autotune.core.workload import Metric, RunSpec

OFF, AUTO = "off", "auto"

MOST_SEEDS = 4
"""Seeds of a trial, its first one counted, that `auto` trains at most."""

SHARE = 1 / 3
"""Of the trainings of a search, what `auto` spends on repeats at most."""

RESERVED = 0.25
"""Of a time limit, what the search leaves to repeats: as much as `SHARE` of its own."""

PRIOR = 4
"""Repeats that the evaluation's own standard error counts like, as a guess of the scatter."""

Knows = Callable[[TrialRecord, int], bool]
"""Whether a trial can be run with a seed; a recording knows few."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two neighbours whose order in accuracy counts.

    Attributes:
        best: The one that is on the front.
        rival: The next smaller one on the front, or one that `best` beats.
        difference: How much better `best` is, as a loss.
    """

    best: TrialRecord
    rival: TrialRecord
    difference: float


class Order:
    """How sure the order of the trials near a front is.

    Args:
        records: Every trial of a run.
        metric: What is searched for, besides low memory.
        knobs: Every knob, to tell who shares an accuracy.
    """

    def __init__(
        self, records: Iterable[TrialRecord], metric: Metric, knobs: Sequence[Knob]
    ) -> None:
        self.metric = metric
        self._knobs = knobs
        self._records = list(records)
        self.front = front(self._records, metric)
        self.spread, self.freedom = self._scatter()

    def half(self, a: TrialRecord, b: TrialRecord) -> float:
        """Return the half width of the 95 % interval of the difference of two means."""
        if not self.freedom:
            return math.inf
        return student(self.freedom) * self.spread * math.sqrt(1 / a.seeds + 1 / b.seeds)

    def open_pairs(self) -> list[Pair]:
        """Return the pairs whose order is not settled."""
        return [p for p in self._pairs() if p.difference < self.half(p.best, p.rival)]

    def _pairs(self) -> Iterator[Pair]:
        """Yield neighbours on the front, and whoever is beaten with the smallest that beats it."""
        peaks = [peak for record in self.front if (peak := self._peak(record)) is not None]
        members = {record.number: place for place, record in enumerate(self.front)}
        for record in self._records:
            loss = self._loss(record)
            if loss is None or (place := members.get(record.number)) == 0:
                continue
            if place is not None:
                best, rival = record, self.front[place - 1]
            else:
                best, rival = self.front[bisect.bisect_right(peaks, self._peak(record)) - 1], record
            twins = self._key(best) == self._key(rival)
            if not twins or (place is not None and best.seeds < rival.seeds):
                difference = (self._loss(rival) or 0.0) - (self._loss(best) or 0.0)
                yield Pair(best=best, rival=rival, difference=difference)

    def _scatter(self) -> tuple[float, int]:
        """Return the standard deviation of a score between seeds, and its degrees of freedom."""
        squares, freedom = 0.0, 0
        firsts = [record.first_score(self.metric) for record in self.front]
        known = [score.stderr for score in firsts if score is not None and score.stderr]
        if known:
            squares, freedom = PRIOR * statistics.fmean(e * e for e in known), PRIOR
        for record in self._records:
            values = seed_values(record, self.metric)
            if len(values) > 1 and all(map(math.isfinite, values)):
                squares += (len(values) - 1) * statistics.variance(values)
                freedom += len(values) - 1
        return (math.sqrt(squares / freedom) if freedom else math.inf), freedom

    def _loss(self, record: TrialRecord) -> float | None:
        point = record.point(self.metric)
        return point[0] if point is not None and math.isfinite(point[0]) else None

    def _peak(self, record: TrialRecord) -> float:
        point = record.point(self.metric)
        return math.inf if point is None else point[1]

    def _key(self, record: TrialRecord) -> str:
        return record.config.accuracy_key(self._knobs)


def checked_repeats(text: str, engine: str) -> str:
    """Return repeats as a run records them: empty for none.

    Args:
        text: `"off"`, `"auto"`, or how many further seeds each trial near the front gets.
        engine: Drives the search.

    Raises:
        BadValue: If it is none of these, or if another engine is to drive the search.
    """
    if text in ("", OFF):
        return ""
    if text != AUTO and not (text.isdecimal() and int(text) > 0):
        raise BadValue(
            f"'{text}' does not say how often trials near the front are repeated",
            where="--repeats",
            help="write --repeats auto, or a number of further seeds such as --repeats 2",
        )
    if engine != "autotune":
        raise BadValue(
            f"engine {engine} runs what it proposed, and has no way to repeat a trial",
            help="leave --engine out, or write --repeats off",
        )
    return text if text == AUTO else str(int(text))


def search_seconds(spec: RunSpec) -> float | None:
    """Return the time after which a search starts nothing more; None for no limit."""
    if spec.time_limit is None or not spec.repeats:
        return spec.time_limit
    return (1.0 - RESERVED) * spec.time_limit


def next_repeat(
    records: Collection[TrialRecord],
    metric: Metric,
    knobs: Sequence[Knob],
    repeats: str,
    *,
    running: Collection[int] = (),
    knows: Knows | None = None,
) -> tuple[TrialRecord, int] | None:
    """Return the trial that is to be trained once more, and which of its seeds that is.

    Args:
        records: Every trial of the run, with its repeats.
        metric: What is searched for.
        knobs: Every knob.
        repeats: `"auto"`, or how many further seeds each gets.
        running: Numbers of the trials that are repeated right now.
        knows: Whether a trial can be run with its first, second, … further seed; None if all can.

    Returns:
        The trial, and how much its seed is above the run's own; None if nothing is to be repeated.
    """
    spent = sum(len(record.repeats) for record in records) + len(running)
    if repeats == AUTO and spent + 1 > SHARE * sum(record.trained for record in records):
        return None
    most = MOST_SEEDS - 1 if repeats == AUTO else int(repeats)
    order = Order(records, metric, knobs)
    members = {record.number for record in order.front}
    near: dict[int, tuple[TrialRecord, float]] = {}
    for pair in order.open_pairs():
        for record in (pair.best, pair.rival):
            known = near.get(record.number)
            gap = pair.difference if known is None else min(known[1], pair.difference)
            near[record.number] = record, gap
    if repeats != AUTO:
        near = {r.number: (r, 0.0) for r in order.front} | near
    left = [
        (record.seeds, record.number not in members, gap, record.number)
        for record, gap in near.values()
        if record.number not in running
        and len(record.repeats) < most
        and (knows is None or knows(record, len(record.repeats) + 1))
    ]
    if not left:
        return None
    record = near[min(left)[-1]][0]
    return record, len(record.repeats) + 1


def seed_values(record: TrialRecord, metric: Metric) -> list[float]:
    """Return a metric for each seed that completed, the first one first."""
    scores = (record.first_score(metric), *(again.score(metric) for again in record.repeats))
    return [score.value for score in scores if score is not None]


def first_front(records: Iterable[TrialRecord], metric: Metric) -> list[TrialRecord]:
    """Return what the front would be by first scores alone, each trial with all its repeats."""
    known = {record.number: record for record in records}
    bare = front((replace(record, repeats=()) for record in known.values()), metric)
    return [known[record.number] for record in bare]


def optimism(records: Iterable[TrialRecord], metric: Metric) -> list[float]:
    """Return how much better first scores were than means, for what first scores put on the front.

    Only trials that were repeated tell it.
    """
    found = []
    for record in first_front(records, metric):
        first, mean = record.first_score(metric), record.score(metric)
        if record.seeds > 1 and first is not None and mean is not None:
            found.append(metric.loss(mean.value) - metric.loss(first.value))
    return found


def repeats_sentence(
    records: Collection[TrialRecord], metric: Metric, knobs: Sequence[Knob]
) -> str:
    """Say how much was repeated, who left and joined the front, and what stayed open.

    Returns:
        A sentence; empty if nothing was repeated.
    """
    ends = [again.outcome for record in records for again in record.repeats]
    if not ends:
        return ""
    repeated = [record.number for record in records if record.repeats]
    failed = sum(not isinstance(end, Completed) for end in ends)
    times = f"{len(ends)} training{'s' * (len(ends) != 1)} with further seeds"
    text = f"{_trials(repeated)} had {times}"
    if failed:
        text += f", of which {failed} did not complete"
    before = {record.number for record in first_front(records, metric)}
    order = Order(records, metric, knobs)
    after = {record.number for record in order.front}
    moves = [
        f"{_trials(sorted(numbers)).lower()} {verb} the front"
        for numbers, verb in ((before - after, "left"), (after - before, "joined"))
        if numbers
    ]
    moved = " and ".join(moves) or "the front stayed as it was"
    pairs = sorted((p.best.number, p.rival.number) for p in order.open_pairs())
    open_ = ", ".join(f"{a} and {b}" for a, b in pairs[:_MOST_PAIRS])
    more = f" and {len(pairs) - _MOST_PAIRS} more pairs" if len(pairs) > _MOST_PAIRS else ""
    rest = f"not settled is the order of {open_}{more}" if pairs else "the order is settled"
    return f"{text}: {moved}; {rest}."


_MOST_PAIRS = 6


def _trials(numbers: Sequence[int]) -> str:
    listed = [str(number) for number in numbers]
    if len(listed) == 1:
        return f"Trial {listed[0]}"
    return f"Trials {', '.join(listed[:-1])} and {listed[-1]}"
