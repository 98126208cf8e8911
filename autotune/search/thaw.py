"""The frontier search on rungs: expected hypervolume by what it still costs.

Every step takes one of these actions, whichever promises most growth of the hypervolume for each
full training that it still needs: go on with a paused trial, whose loss is known roughly, or start
a new one. A paused trial is never given up: one that lost its appeal regains it if the model
changes its mind. Some trials go on to the end at first, spread over memory: they show how far rungs
can be trusted.

References:
    Swersky et al. 2014, arXiv:1406.3896 (freezing and thawing); Emmerich et al. 2011 (expected
    hypervolume improvement).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from autotune.core.config import Config
from autotune.core.outcome import Completed
from autotune.core.record import TrialRecord
from autotune.search.deadline import Deadline
from autotune.search.features import rows
from autotune.search.fidelity import FidelityLearner, LowFidelity, by_rung, distance_of
from autotune.search.findings import Finding
from autotune.search.frontier import FrontierProposer
from autotune.search.learner import Learner
from autotune.search.pace import Pace
from autotune.search.rungs import Rungs, reached_by, rung_loss
from autotune.search.scene import Menu, Scene, encoded
from autotune.search.surrogate import Array

ANCHORS = 4
"""Trials that go on to their end before the model is asked what should."""

OPTIMISM = 0.7
"""What the promise of a new trial counts for: it is the greatest of many, a paused one's is not."""


class RungDeadline(Deadline):
    """Counts full trainings where `Deadline` counts trials."""

    def __init__(self, trials: int = 0, time_limit: float | None = None, slots: int = 1) -> None:
        super().__init__(trials, time_limit, slots)
        self._shares: dict[int, float] = {}

    def reached(self, number: int, share: float) -> None:
        """Learn how much of its training a trial has done."""
        self._shares[number] = share

    def trials_left(self, running: int = 0) -> float:
        """Return the full trainings that are left, as many as run already taken off."""
        if not self.trials:
            return math.inf
        return self.trials - sum(self._shares.values()) - running


class ThawProposer(FrontierProposer):
    """A `Proposer` with a rule of its own for what is paused; see `rungs.Promotion`.

    Args:
        task: As `FrontierProposer` takes it; the deadline is a `RungDeadline`.
        rungs: Where trials pause; there is at least one.
        options: As `FrontierProposer` takes them.
    """

    def __init__(self, *task: Any, rungs: Rungs, **options: Any) -> None:
        super().__init__(*task, **options)
        self._rungs = rungs
        self._records: dict[int, TrialRecord] = {}
        self._kept: dict[int, Config | None] = {}
        self._claims: set[Config] = set()
        self._modelled = False

    def choose(
        self,
        number: int,
        waiting: Sequence[TrialRecord],
        records: Sequence[TrialRecord],
        *,
        may_start: bool,
    ) -> TrialRecord | None:
        """Return the trial to go on with, or None for a new one; see `rungs.Rule`."""
        if (anchor := self._anchor(waiting, records)) is not None:
            return anchor
        may_start = may_start and not self._late()
        fresh = self._kept[number] if number in self._kept else super().ask(number)
        if fresh is not None:
            self._kept[number] = fresh
        claimed = fresh is not None and fresh in self._claims
        if self._scene is None or not self._modelled or (claimed and may_start):
            return None if may_start else waiting[0]
        values = self._values(self._scene, waiting)
        best = int(np.argmax(values))
        new = OPTIMISM * (self._remaining or 0.0) * max(self._scene.volume, 1e-12)
        if may_start and fresh is not None and new >= values[best]:
            return None
        self._give_back(number)
        return waiting[best]

    def whole(self, config: Config) -> bool:
        """Whether a configuration is to be trained at once: one that verifies a claim."""
        return config in self._claims

    def ask(self, number: int) -> Config | None:
        """Return the proposal that `choose` weighed, or a new one."""
        if number in self._kept:
            return self._kept.pop(number)
        return super().ask(number)

    def tell(self, record: TrialRecord) -> None:
        """Learn from a trial; what was weighed before is weighed anew."""
        for number in list(self._kept):
            self._give_back(number)
        super().tell(record)
        self._records[record.number] = record

    def _late(self) -> bool:
        """Whether a new trial would hardly be trained to its end within the time."""
        typical = self._pace.typical
        return self._deadline.timed and self._deadline.seconds_left() < typical

    def _give_back(self, number: int) -> None:
        """Forget a proposal that was weighed and not taken."""
        config = self._kept.pop(number, None)
        if config is not None:
            self._running.pop(number, None)
            self._known.discard(config)

    def _anchor(
        self, waiting: Sequence[TrialRecord], records: Sequence[TrialRecord]
    ) -> TrialRecord | None:
        """Return a trial that has begun to go on to its end, or is chosen to, as there are few."""
        begun = [r for r in waiting if reached_by(r) > self._rungs.shares[0]]
        ended = [r for r in records if isinstance(r.outcome, Completed)]
        going = [r for r in records if r.outcome is None and r.paused is not None]
        if len(ended) + len(going) >= ANCHORS or not waiting:
            return None
        if begun:
            return begun[0]
        paused = [r for r in records if r.rungs and r.outcome is not None]
        if len(paused) < 2 * ANCHORS:
            return None
        peaks = [math.log(_peak(r)) for r in [*ended, *going] if _peak(r)]
        apart = [
            min((abs(math.log(_peak(r)) - p) for p in peaks), default=0.0) if _peak(r) else 0.0
            for r in waiting
        ]
        return waiting[int(np.argmax(apart))]

    def _values(self, scene: Scene, waiting: Sequence[TrialRecord]) -> Array:
        """Return the expected growth of each by the training that it still needs."""
        codes = [self._features.codes(record.config) for record in waiting]
        inside = [i for i, found in enumerate(codes) if found is not None]
        values = np.full(len(waiting), -1.0)
        if inside:
            matrix = rows([c for c in codes if c is not None], len(self._features.columns))
            left = np.array([1.0 - reached_by(waiting[i]) for i in inside])
            values[inside] = scene.rate(matrix).promise / left
        return values

    def _wishes(self, number: int) -> Iterator[Config]:
        self._scene, self._modelled = None, False
        for config in super()._wishes(number):
            self._modelled = self._scene is not None
            yield config

    def _seen(self, trained: Sequence[Finding], pending: Array) -> int:
        return len(trained) + len(pending) + len(self._low())

    def _spread(
        self, trained: Sequence[Finding], pending: Array, initial: int, pace: Pace | None
    ) -> Iterator[Array]:
        found = [self._features.codes(record.config) for record in self._low()]
        low = rows([codes for codes in found if codes is not None], pending.shape[1])
        yield from super()._spread(trained, np.vstack([pending, low]), initial, pace)

    def _verifications(
        self, scene: Scene, trained: Sequence[Finding], pending: Array, initial: int
    ) -> Array:
        found = super()._verifications(scene, trained, pending, initial)
        self._claims.update(self._features.config(row) for row in found)
        return found

    def _learn(self, record: TrialRecord) -> None:
        super()._learn(record)
        if isinstance(self._deadline, RungDeadline) and not record.refused:
            reached = reached_by(record) or self._rungs.after(0.0)
            self._deadline.reached(record.number, reached)

    def _learner(self, menu: Menu) -> Learner:
        key = menu.lossy.tobytes()
        if key not in self._learners:
            groups = self._features.groups(menu.lossy)
            self._learners[key] = FidelityLearner(np.append(groups, len(menu.lossy)))
        learner = self._learners[key]
        if isinstance(learner, FidelityLearner):
            learner.low = self._low_fidelity(menu)
        return learner

    def _low(self) -> list[TrialRecord]:
        """Return the trials that have only been at rungs."""
        records = (self._records[n] for n in sorted(self._records))
        return [r for r in records if r.rungs and not isinstance(r.outcome, Completed)]

    def _low_fidelity(self, menu: Menu) -> LowFidelity | None:
        """Return every loss at a rung, those of trials that have ended since, too."""
        codes, losses, distances = [], [], []
        least = self._rungs.shares[0]
        for number in sorted(self._records):
            record = self._records[number]
            found = self._features.codes(record.config)
            for rung in record.rungs if found is not None else ():
                loss = rung_loss(record, rung.share, self._metric)
                if loss is not None and found is not None and math.isfinite(loss):
                    codes.append(found)
                    losses.append(loss)
                    distances.append(distance_of(rung.share, least))
        if not losses:
            return None
        matrix = rows(codes, len(self._features.columns))
        return LowFidelity(
            points=encoded(self._features, menu, self._memory, matrix),
            losses=by_rung(losses, distances),
            distance=np.array(distances),
        )


def _peak(record: TrialRecord) -> float:
    latest = record.outcome or record.paused
    return 0.0 if latest is None else float(latest.measurement.peak_bytes)
