"""Who watches a run: the live display, `key=value` lines, whatever a user adds.

The loop calls an observer when something happens and does not care what comes of it. Calls come
from the driver's one thread, in order; an observer must return quickly and must not change what it
is given. `Silent` does nothing and is what observers start from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from autotune.core.budget import Budget
from autotune.core.context import Device
from autotune.core.record import TrialRecord
from autotune.core.space import Space
from autotune.core.workload import Metric, RunSpec


class Report(Protocol):
    """What a running trial reported; `autotune.trial.spec.Event` is one."""

    @property
    def kind(self) -> str:
        """`"phase"` (data: phase) or `"step"` (step, steps, loss)."""

    @property
    def data(self) -> Mapping[str, Any]:
        """Its JSON object."""

    @property
    def time(self) -> float:
        """Unix time, or the runner's simulated time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """What observers are told of a run when it starts.

    Attributes:
        spec: What the run depends on.
        space: The narrowed space.
        legal_count: Number of legal configurations, None if it cannot be counted quickly.
        folder: The run's folder.
        budget: What a trial may need.
        device: Where trials run.
        metric: What is searched for.
        clock: The time now, in the unit and from the origin of `Report.time`.
        earlier: Trials that ended in an earlier part of the run, if it is resumed.
    """

    spec: RunSpec
    space: Space
    legal_count: int | None
    folder: Path
    budget: Budget
    device: Device
    metric: Metric
    clock: Callable[[], float]
    earlier: tuple[TrialRecord, ...] = ()


class Observer(Protocol):
    """Is told what happens in a run."""

    def started(self, run: RunView) -> None:
        """The run starts, or goes on."""

    def trial_started(self, record: TrialRecord) -> None:
        """A trial was submitted."""

    def event(self, record: TrialRecord, event: Report) -> None:
        """A running trial reported something."""

    def trial_ended(
        self,
        record: TrialRecord,
        joined_front: bool,  # noqa: FBT001  (the loop passes what it knows, in this order)
        front: Sequence[TrialRecord],
    ) -> None:
        """A trial ended, whichever way.

        Args:
            record: The trial, with its outcome.
            joined_front: Whether it is on the front now.
            front: The front now, by ascending peak.
        """

    def trial_repeated(self, record: TrialRecord, front: Sequence[TrialRecord]) -> None:
        """A trial was trained with a further seed, after the search; a note says how it ended.

        Args:
            record: The trial with all its seeds.
            front: The front by their means, by ascending peak.
        """

    def note(self, text: str) -> None:
        """Something else that a person should read."""

    def ended(self, status: str) -> None:
        """The run ended: `done`, `interrupted` or `failed`."""


class Silent:
    """An observer that does nothing."""

    def started(self, run: RunView) -> None:
        """Do nothing."""

    def trial_started(self, record: TrialRecord) -> None:
        """Do nothing."""

    def event(self, record: TrialRecord, event: Report) -> None:
        """Do nothing."""

    def trial_ended(
        self,
        record: TrialRecord,
        joined_front: bool,  # noqa: FBT001  (see `Observer`)
        front: Sequence[TrialRecord],
    ) -> None:
        """Do nothing."""

    def trial_repeated(self, record: TrialRecord, front: Sequence[TrialRecord]) -> None:
        """Do nothing."""

    def note(self, text: str) -> None:
        """Do nothing."""

    def ended(self, status: str) -> None:
        """Do nothing."""
