"""Rungs: trainings pause after a part of their steps, and those that promise most go on.

A trial trains to the first rung, is evaluated and pauses. Its memory is known by then, and its
accuracy roughly; a rule says which of the paused ones goes on to the next rung from its checkpoint,
or that another one is started. What is counted are full trainings: a trial that stands at 1/9 has
cost a ninth.

`ByRank` is the rule for samplers that only propose: of those that reached a rung, the best part by
non-dominated sorting goes on, as soon as there are enough of them. The frontier search has a rule
of its own (`search/thaw.py`).

References:
    Schmucker et al. 2021, arXiv:2106.12639 (MO-ASHA); Li et al. 2020, arXiv:1810.05934 (ASHA).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol, runtime_checkable

from autotune.core.config import Config
from autotune.core.errors import BadValue
from autotune.core.knob import run_stage
from autotune.core.outcome import Completed, Paused
from autotune.core.parts import pause_after
from autotune.core.record import TrialRecord
from autotune.core.workload import Metric
from autotune.knobs import BUILTIN
from autotune.knobs.stages import LAYOUT, LayoutPlan

OFF, AUTO = "off", "auto"
AUTO_SHARES = (1 / 9, 1 / 3)
"""Each rung trains three times as long as the one before."""

ETA = 3
"""Of so many trials that reached a rung, one goes on."""

_ROUNDING = 1e-6


def parse_rungs(text: str) -> tuple[float, ...]:
    """Read `off` or nothing, `auto`, or shares of a training such as `1/9,1/3`.

    Returns:
        Shares at which trainings pause, ascending, none of them 1.

    Raises:
        BadValue: If it is none of these.
    """
    if text in ("", OFF, AUTO):
        return AUTO_SHARES if text == AUTO else ()
    try:
        shares = tuple(float(Fraction(part.strip())) for part in text.split(","))
    except (ValueError, ZeroDivisionError):
        shares = (0.0,)
    if not all(0.0 < share < 1.0 for share in shares) or list(shares) != sorted(set(shares)):
        raise BadValue(
            f"'{text}' are no rungs: shares of a training, ascending, between 0 and 1",
            help="write --rungs auto, --rungs off, or --rungs 1/9,1/3",
        )
    return shares


def checked_rungs(text: str, engine: str) -> str:
    """Return rungs as a run records them: empty if trials train to their end at once.

    Args:
        text: As for `parse_rungs`.
        engine: Drives the search.

    Raises:
        BadValue: As `parse_rungs`, or if another engine is to drive the search.
    """
    if not parse_rungs(text):
        return ""
    if engine != "autotune":
        raise BadValue(
            f"engine {engine} has its own way to end trials early, and knows no rungs",
            help="leave --engine out, or write --rungs off",
        )
    return text


def reason_against_pausing(config: Config) -> str | None:
    """Return why a configuration is trained to its end at once, as a sentence, or None."""
    ranks = run_stage(LAYOUT, LayoutPlan(), BUILTIN, config).ranks
    if ranks > 1:
        return (
            f"a training on {ranks} ranks keeps a part of its states on each of them and cannot "
            "pause: it is trained to its end at once"
        )
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rungs:
    """At which shares of the training trials pause.

    Attributes:
        shares: Ascending, without the whole; none if trials train to their end at once.
    """

    shares: tuple[float, ...] = ()

    @classmethod
    def of(cls, text: str, steps: int) -> Rungs:
        """Return the rungs of a workload: those of `parse_rungs` that its steps can tell apart.

        Args:
            text: As for `parse_rungs`.
            steps: Optimizer steps of a whole training.

        Raises:
            BadValue: As `parse_rungs`.
        """
        kept: dict[int, float] = {}
        for share in parse_rungs(text):
            step = pause_after(share, steps)
            # In a short training, the steps that measure memory may be more than the share.
            kept.setdefault(step, share if step == round(share * steps) else step / steps)
        kept.pop(steps, None)
        return cls(shares=tuple(kept.values()))

    @property
    def on(self) -> bool:
        """Whether trials pause at all."""
        return bool(self.shares)

    def after(self, share: float) -> float:
        """Return the next rung after a share; 1 after the last."""
        return next((rung for rung in self.shares if rung > share + _ROUNDING), 1.0)

    def cost(self, record: TrialRecord, until: Mapping[int, float]) -> float:
        """Return what a trial has cost, in full trainings.

        A trial that ended badly costs the part in which it did.

        Args:
            record: Of a trial that runs, is paused, or ended.
            until: For trials that run, the share that they run to.
        """
        if record.refused:
            return 0.0
        if isinstance(record.outcome, Completed):
            return 1.0
        reached = reached_by(record)
        if isinstance(record.outcome, Paused):
            return reached
        if record.outcome is None:
            return until.get(record.number, 1.0)
        given_up = record.outcome.tag == "stopped" and reached > 0.0
        return reached if given_up else self.after(reached)

    def spent(self, records: Iterable[TrialRecord], until: Mapping[int, float]) -> float:
        """Return what trials have cost together, in full trainings."""
        return sum(self.cost(record, until) for record in records)


class Rule(Protocol):
    """Says which paused trial goes on."""

    def choose(
        self,
        number: int,
        waiting: Sequence[TrialRecord],
        records: Sequence[TrialRecord],
        *,
        may_start: bool,
    ) -> TrialRecord | None:
        """Return the trial to go on with, None to start a new one.

        Args:
            number: That a new trial would have.
            waiting: Paused trials that could go on within what may still be spent.
            records: Every trial of the run.
            may_start: Whether a new one could be trained to its end.
        """


@runtime_checkable
class Promotion(Rule, Protocol):
    """The rule of a proposer that has one of its own."""

    def whole(self, config: Config) -> bool:
        """Whether a configuration that it proposed is to be trained to its end at once."""


class ByRank:
    """The best third of each rung goes on, by non-dominated sorting.

    Args:
        metric: What is searched for, besides low memory.
    """

    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def choose(
        self,
        number: int,
        waiting: Sequence[TrialRecord],
        records: Sequence[TrialRecord],
        *,
        may_start: bool,
    ) -> TrialRecord | None:
        """Return the best one that is due, from the highest rung down; see `Rule`."""
        shares = sorted({reached_by(record) for record in waiting}, reverse=True)
        for share in shares:
            reached = [r for r in records if rung_loss(r, share, self._metric) is not None]
            ranked = self.ranked(reached, share)
            due = {record.number for record in ranked[: len(ranked) // ETA]}
            here = [r for r in waiting if abs(reached_by(r) - share) < _ROUNDING]
            chosen = [r for r in ranked if r.number in due and r in here]
            if chosen:
                return chosen[0]
            if not may_start and here:
                return next((r for r in ranked if r in here), here[0])
        return None

    def ranked(self, records: Sequence[TrialRecord], share: float) -> list[TrialRecord]:
        """Return trials that reached a rung, the best ones first.

        Fronts are peeled off one after the other; within a front, the next one is that which is
        farthest from those before it, so that whatever part goes on is spread over memory.

        Args:
            records: Each with a loss at the rung.
            share: Which rung.
        """
        points = {
            r.number: (loss, _peak(r))
            for r in records
            if (loss := rung_loss(r, share, self._metric)) is not None
        }
        left, order = list(records), list[TrialRecord]()
        while left:
            layer = [
                r for r in left if not any(_beats(points[o.number], points[r.number]) for o in left)
            ]
            order.extend(_spread(layer, points))
            left = [record for record in left if record not in layer]
        return order


def reached_by(record: TrialRecord) -> float:
    """Return the share of its training that a trial is known to have done; 0 before a rung."""
    if isinstance(record.outcome, Completed):
        return 1.0
    return record.rungs[-1].share if record.rungs else 0.0


def rung_loss(record: TrialRecord, share: float, metric: Metric) -> float | None:
    """Return the loss, to be minimised, that a trial had at a rung; None if it was not there."""
    for rung in record.rungs:
        if abs(rung.share - share) < _ROUNDING and metric.name in rung.scores:
            return metric.loss(rung.scores[metric.name].value)
    return None


def lifts(records: Iterable[TrialRecord], metric: Metric) -> dict[float, float]:
    """Return by how much the loss still changes from each rung to the end, at the median."""
    found: dict[float, list[float]] = {}
    for record in records:
        score = record.score(metric)
        for rung in record.rungs if score is not None else ():
            loss = rung_loss(record, rung.share, metric)
            if loss is not None and score is not None:
                found.setdefault(rung.share, []).append(metric.loss(score.value) - loss)
    return {share: sorted(gaps)[len(gaps) // 2] for share, gaps in found.items()}


def _peak(record: TrialRecord) -> float:
    latest = record.outcome or record.paused
    return 0.0 if latest is None else float(latest.measurement.peak_bytes)


def _beats(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return a[0] <= b[0] and a[1] <= b[1] and a != b


def _spread(
    layer: Sequence[TrialRecord], points: Mapping[int, tuple[float, float]]
) -> list[TrialRecord]:
    """Return a front: the best loss first, then always the one farthest from all before it."""
    low = [min(points[r.number][axis] for r in layer) for axis in (0, 1)]
    span = [max(points[r.number][axis] for r in layer) - low[axis] or 1.0 for axis in (0, 1)]

    def apart(a: TrialRecord, b: TrialRecord) -> float:
        p, q = points[a.number], points[b.number]
        return max(abs(p[axis] - q[axis]) / span[axis] for axis in (0, 1))

    left = sorted(layer, key=lambda r: (points[r.number], r.number))
    order = [left.pop(0)]
    while left:
        farthest = max(left, key=lambda r: min(apart(r, o) for o in order))
        order.append(farthest)
        left.remove(farthest)
    return order
