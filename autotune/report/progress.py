"""What a run has come to so far, kept from what the loop tells its observers.

The displays differ in form only, so they share this. Whatever is kept is replaced as a whole and
never changed in place: the live display is drawn from another thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from autotune.core.observer import Report, RunView, Silent
from autotune.core.outcome import Completed
from autotune.core.pareto import front as pareto_front
from autotune.core.record import TrialRecord
from autotune.core.units import format_duration


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningTrial:
    """A trial under way.

    Attributes:
        record: The trial.
        phase: Where it is; empty before the first report.
        step: Optimizer steps done.
        steps: How many there will be.
        loss: Loss of the last step that was reported, None before that.
    """

    record: TrialRecord
    phase: str = ""
    step: int = 0
    steps: int = 0
    loss: float | None = None


class Progress(Silent):
    """Keeps what displays show. Subclasses draw."""

    view: RunView | None = None

    def __init__(self) -> None:
        self.running: dict[int, RunningTrial] = {}
        self.ended_trials: tuple[TrialRecord, ...] = ()
        self.front: tuple[TrialRecord, ...] = ()
        self.began = 0.0

    def started(self, run: RunView) -> None:
        """Remember the run and the trials of its earlier parts."""
        self.view = run
        self.began = run.clock()
        self.ended_trials = run.earlier
        self.front = tuple(pareto_front(run.earlier, run.metric))

    def trial_started(self, record: TrialRecord) -> None:
        """Add a running trial."""
        self.running = {**self.running, record.number: RunningTrial(record=record)}

    def event(self, record: TrialRecord, event: Report) -> None:
        """Note phase, step and loss of a running trial."""
        trial = self.running.get(record.number, RunningTrial(record=record))
        data = event.data
        if event.kind == "phase":
            trial = replace(trial, phase=str(data.get("phase", "")))
        elif event.kind == "step":
            trial = replace(
                trial,
                step=int(data.get("step", 0)),
                steps=int(data.get("steps", 0)),
                loss=float(data["loss"]) if "loss" in data else None,
            )
        self.running = {**self.running, record.number: trial}

    def trial_ended(
        self,
        record: TrialRecord,
        joined_front: bool,  # noqa: FBT001  (see `Observer`)
        front: Sequence[TrialRecord],
    ) -> None:
        """Move a trial from the running to the ended ones, and take over the front."""
        self.running = {n: t for n, t in self.running.items() if n != record.number}
        others = (ended for ended in self.ended_trials if ended.number != record.number)
        self.ended_trials = (*others, record)  # one that had paused ends again
        self.front = tuple(front)

    def trial_repeated(self, record: TrialRecord, front: Sequence[TrialRecord]) -> None:
        """Take over the trial with its further seed, and the front by means."""
        self.ended_trials = tuple(
            record if ended.number == record.number else ended for ended in self.ended_trials
        )
        self.front = tuple(front)

    @property
    def elapsed(self) -> float:
        """Seconds since this part of the run started."""
        return self.view.clock() - self.began if self.view else 0.0

    @property
    def trained(self) -> float:
        """Whole trainings that trials have come to; those that were refused never started."""
        return round(sum(record.trained for record in self.ended_trials), 1)

    def counts(self) -> dict[str, int]:
        """Return how many trials ended how, by the tag of their outcome."""
        found: dict[str, int] = {}
        for record in self.ended_trials:
            if record.outcome is not None:
                found[record.outcome.tag] = found.get(record.outcome.tag, 0) + 1
        return found

    def left(self) -> str:
        """Say how long it will take at the pace so far; empty where that cannot be told."""
        if self.view is None:
            return ""
        before = sum(record.trained for record in self.view.earlier)
        done = self.trained - before
        remaining = self.view.spec.trials - self.trained
        if not any(isinstance(r.outcome, Completed) for r in self.ended_trials) or done <= 0:
            return ""
        seconds = self.elapsed / done * remaining
        limit = self.view.spec.time_limit
        return format_duration(seconds if limit is None else min(seconds, limit - self.elapsed))
