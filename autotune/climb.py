"""Trials that pause: what may still be spent, which of them goes on, and what they keep on disk.

Checkpoints stand in the folders of their trials until those end. At most `MOST_WAITING` of them are
kept, and no more than fit into half of what the disk has free: whoever is worst then is left behind
for good, with the score of its last rung.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from autotune.core.config import Config
from autotune.core.outcome import Outcome, Paused, Stopped
from autotune.core.record import Origin, TrialRecord
from autotune.core.units import format_gb
from autotune.core.workload import Metric
from autotune.search.rungs import (
    ByRank,
    Rule,
    Rungs,
    reached_by,
    reason_against_pausing,
)

OPENING = (Origin.BASELINE, Origin.SMALLEST)
"""Tried before anything is searched: what is compared with, and whether anything fits."""

MOST_WAITING = 16
"""Checkpoints that are kept, at most."""

_DISK_SHARE = 0.5
_ROUNDING = 1e-6
_CHECKPOINT = "paused.pt"


@dataclass(slots=True, kw_only=True)
class Climb:
    """The rungs of a search.

    Attributes:
        rungs: Where trials pause.
        rule: Says which of them goes on.
        metric: What is searched for, besides low memory.
        trials: Full trainings that may be spent.
        folder: Of the run.
        until: For each trial that runs, the share of its training that it runs to.
        most_waiting: Checkpoints that are kept, at most.
    """

    rungs: Rungs
    rule: Rule
    metric: Metric
    trials: int
    folder: Path
    until: dict[int, float] = field(default_factory=dict)
    most_waiting: int = MOST_WAITING
    _costs: dict[int, tuple[TrialRecord, float]] = field(default_factory=dict)

    def room(self, records: Mapping[int, TrialRecord], cost: float = 1.0) -> bool:
        """Whether so many full trainings may still be spent."""
        return self._spent(records) + cost <= self.trials + _ROUNDING

    def first(self, config: Config, *, whole: bool = False) -> float:
        """Return the share that a new trial trains to.

        Args:
            config: Some cannot pause.
            whole: Whether it is to be trained to its end at once.
        """
        if whole or not self.rungs.on or reason_against_pausing(config) is not None:
            return 1.0
        return self.rungs.after(0.0)

    def choose(self, number: int, records: Mapping[int, TrialRecord]) -> TrialRecord | None:
        """Return the paused trial to go on with, None if a new one is to be started, or none.

        Args:
            number: That a new trial would have.
            records: Every trial of the run, by number.
        """
        waiting = [r for r in self.waiting(records) if self.room(records, self._next_cost(r))]
        for record in waiting:
            if record.origin in OPENING:
                return record
        if not waiting:
            return None
        every = [records[n] for n in sorted(records)]
        return self.rule.choose(number, waiting, every, may_start=self.room(records))

    def waiting(self, records: Mapping[int, TrialRecord]) -> list[TrialRecord]:
        """Return the paused trials whose checkpoint is there."""
        paused = [r for r in records.values() if isinstance(r.outcome, Paused)]
        paused.sort(key=lambda record: record.number)
        return [r for r in paused if self.checkpoint(r.number).is_file()]

    def settled(self, record: TrialRecord, outcome: Outcome) -> Outcome:
        """Return how a trial stands that a process has ended.

        One that paused and is over its limit need not go on; one that was stopped while it went on
        is paused where it was.
        """
        if isinstance(outcome, Stopped) and record.paused is not None:
            return record.paused
        over = outcome.measurement.footprint_bytes > record.limit_bytes > 0
        if isinstance(outcome, Paused) and over and record.origin not in OPENING:
            return stopped(outcome, "it is over the budget")
        return outcome

    def left_behind(self, records: Mapping[int, TrialRecord]) -> list[TrialRecord]:
        """Return the trials whose checkpoints are too many, as they end."""
        waiting = self.waiting(records)
        sizes = {r.number: self.checkpoint(r.number).stat().st_size for r in waiting}
        free = shutil.disk_usage(self.folder).free if waiting else 0
        rank = ByRank(self.metric)
        ranked: list[TrialRecord] = []
        for share in sorted({reached_by(r) for r in waiting}, reverse=True):
            here = [r for r in waiting if reached_by(r) == share]
            ranked += rank.ranked(here, share)
        ranked += [r for r in waiting if r not in ranked]
        kept, room = 0, _DISK_SHARE * (free + sum(sizes.values()))
        dropped = []
        for record in ranked:
            room -= sizes[record.number]
            if kept < self.most_waiting and room >= 0:
                kept += 1
            elif record.origin not in OPENING and isinstance(record.outcome, Paused):
                why = f"left behind, as {kept} checkpoints are kept"
                dropped.append(replace(record, outcome=stopped(record.outcome, why)))
        return dropped

    def checkpoint(self, number: int) -> Path:
        """Return the file that a trial goes on from."""
        return self.folder / "trials" / str(number) / _CHECKPOINT

    def forget(self, number: int) -> None:
        """Delete the checkpoint of a trial that ended."""
        self.checkpoint(number).unlink(missing_ok=True)

    def note(self, records: Mapping[int, TrialRecord]) -> str:
        """Return a sentence on what the paused trials keep; empty if there are none."""
        waiting = self.waiting(records)
        if not waiting:
            return ""
        size = sum(self.checkpoint(record.number).stat().st_size for record in waiting)
        trials = "1 trial is" if len(waiting) == 1 else f"{len(waiting)} trials are"
        return f"{trials} paused; to go on with them later, {format_gb(size)} are kept on disk"

    def _spent(self, records: Mapping[int, TrialRecord]) -> float:
        """Return what trials have cost together; what an ended one has is looked up once."""
        spent = 0.0
        for number, record in records.items():
            known = self._costs.get(number)
            if known is None or known[0] is not record:
                known = record, self.rungs.cost(record, self.until)
                if record.outcome is not None:
                    self._costs[number] = known
            spent += known[1]
        return spent

    def _next_cost(self, record: TrialRecord) -> float:
        reached = reached_by(record)
        return self.rungs.after(reached) - reached


def stopped(paused: Paused, reason: str) -> Stopped:
    """Return the outcome of a paused trial that will not go on."""
    return Stopped(
        step=paused.rung.step,
        reason=reason,
        seconds=paused.seconds,
        measurement=paused.measurement,
        rungs=paused.rungs,
    )
