"""What every tracker is told, and how: beside the search, in a thread that may fail alone.

A tracker writes to disks and servers that may be slow or away, and the loop waits for nobody. So
its calls queue up for one thread. The first one that raises switches the tracker off: the other
observers get one note, the search goes on, and the study database has everything anyway.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import Protocol

from autotune.core.domains import Value
from autotune.core.observer import Observer, Report, RunView, Silent
from autotune.core.outcome import Outcome, Paused, PeakKind, Phase
from autotune.core.record import TrialRecord
from autotune.core.workload import Metric

PATIENCE = 60.0
"""Seconds that the end of a run waits for what a tracker has not written yet."""

_SECRETS = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "WANDB_API_KEY")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One trial, as trackers are told of it.

    Attributes:
        number: In its run.
        label: What differs from the baseline, for people.
        params: A value for every knob, neutral ones included.
        tags: `outcome`, and who proposed it; of a trial that runs only the latter.
        metrics: The scores and their standard errors, memory in GiB, tokens per second, seconds;
            only what was measured. Empty while it runs.
    """

    number: int
    label: str
    params: Mapping[str, Value]
    tags: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)


class Tracker(Protocol):
    """Keeps trials in one library's way. Any method may raise whatever its library raises."""

    def open(self, run: RunView) -> None:
        """A run starts, or goes on."""

    def began(self, trial: Trial) -> None:
        """A trial was submitted, for the first time or again after a pause."""

    def loss(self, number: int, step: int, loss: float) -> None:
        """A running trial reported the loss of an optimizer step."""

    def finished(self, trial: Trial) -> None:
        """A trial ended, or has new means after a further seed."""

    def close(self, status: str) -> None:
        """The run ended: `done`, `interrupted` or `failed`."""


class Tracking(Silent):
    """Tells a tracker what happens in a run, from a thread of its own.

    Refused configurations cost no training and are not tracked. A paused trial is told as finished
    only if it never goes on.

    Args:
        name: How notes call the tracker.
        tracker: Is told.
        others: Get the note when it is switched off; without any, it is a Python warning.
        patience: Seconds that the end of the run waits for it.
    """

    def __init__(
        self,
        name: str,
        tracker: Tracker,
        others: Sequence[Observer] = (),
        *,
        patience: float = PATIENCE,
    ) -> None:
        self.name = name
        self.tracker = tracker
        self.others = others
        self.patience = patience
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._view: RunView | None = None
        self._fault = ""
        self._off = False
        self._paused: dict[int, TrialRecord] = {}

    def started(self, run: RunView) -> None:
        """Open the tracker."""
        self._view = run
        self._thread.start()
        self._later(partial(self.tracker.open, run))

    def trial_started(self, record: TrialRecord) -> None:
        """Tell its configuration."""
        self._paused.pop(record.number, None)
        self._later(partial(self.tracker.began, self._trial(record)))

    def event(self, record: TrialRecord, event: Report) -> None:
        """Pass a loss on."""
        if event.kind == "step" and event.data.get("loss") is not None:
            step, loss = int(event.data["step"]), float(event.data["loss"])
            self._later(partial(self.tracker.loss, record.number, step, loss))

    def trial_ended(
        self,
        record: TrialRecord,
        joined_front: bool,  # noqa: FBT001  (see `Observer`)
        front: Sequence[TrialRecord],
    ) -> None:
        """Tell what it came to, unless it may go on."""
        self._paused.pop(record.number, None)
        if isinstance(record.outcome, Paused):
            self._paused[record.number] = record
        elif not record.refused:
            self._later(partial(self.tracker.finished, self._trial(record)))

    def trial_repeated(self, record: TrialRecord, front: Sequence[TrialRecord]) -> None:
        """Tell its new means."""
        self._later(partial(self.tracker.finished, self._trial(record)))

    def ended(self, status: str) -> None:
        """Tell of trials that stay paused, and wait until everything is written."""
        for record in self._paused.values():
            self._later(partial(self.tracker.finished, self._trial(record)))
        self._later(partial(self.tracker.close, status))
        self._calls.put(None)
        self._thread.join(self.patience)
        self._warn()
        if self._thread.is_alive():
            self._tell(f"{self.name} did not take everything within {self.patience:g} s")

    def _later(self, call: Callable[[], None]) -> None:
        self._warn()
        if not self._off:
            self._calls.put(call)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                call()
            except Exception as error:  # noqa: BLE001  whatever a library raises, the search goes on
                self._fault = one_line(error)
                return

    def _warn(self) -> None:
        """Say that the tracker failed: in the driver's thread, as observers expect, and once."""
        if self._fault and not self._off:
            self._off = True
            self._tell(f"{self.name} is switched off and the search goes on: {self._fault}")

    def _tell(self, text: str) -> None:
        for observer in self.others:
            observer.note(text)
        if not self.others:
            warnings.warn(text, RuntimeWarning, stacklevel=2)

    def _trial(self, record: TrialRecord) -> Trial:
        assert self._view is not None
        knobs, tags = self._view.space.knobs, {"origin": str(record.origin)}
        if record.outcome is not None:
            tags["outcome"] = record.outcome.tag
        return Trial(
            number=record.number,
            label=record.config.describe(knobs),
            params=record.config.complete(knobs),
            tags=tags,
            metrics={} if record.outcome is None else _metrics(record, self._view.metric),
        )


def _metrics(record: TrialRecord, metric: Metric) -> dict[str, float]:
    """Return every number of a finished trial under the name that trackers show."""
    assert record.outcome is not None
    found: dict[str, float] = {}
    for name, score in record.scores.items():
        found[name] = score.value
        if score.stderr is not None:
            found[f"{name}_stderr"] = score.stderr
    if (searched := record.score(metric)) is not None:
        found["score"] = searched.value
    return {**found, "seconds": record.outcome.seconds, **_measured(record.outcome)}


def _measured(outcome: Outcome) -> dict[str, float]:
    measured = outcome.measurement
    kind = PeakKind.RESERVED if measured.peak(PeakKind.RESERVED) else PeakKind.ALLOCATED
    found = {
        "peak_gib": measured.peak_bytes / 2**30,
        **{f"peak_{phase}_gib": measured.peak(kind, phase) / 2**30 for phase in Phase},
        "footprint_gib": measured.footprint_bytes / 2**30,
        "tokens_per_second": measured.throughput,
        "step_seconds": measured.step_seconds,
    }
    return {name: value for name, value in found.items() if value}


def one_line(error: Exception) -> str:
    """Say what was raised in one line, without passwords, tokens and keys."""
    text = f"{type(error).__name__}: {error}".strip().partition("\n")[0][:300]
    for name in _SECRETS:
        if secret := os.environ.get(name):
            text = text.replace(secret, "***")
    return re.sub(r"://[^/\s@]*@", "://***@", text)
