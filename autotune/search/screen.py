"""Refuse what cannot fit before it costs anything.

Every proposal is rehearsed (`memory/rehearse.py`), and what the rehearsal counts is turned into
what the device will show by what this study has measured so far (`memory/calibrate.py`). A
configuration whose interval lies above the limit as a whole is refused; one whose interval holds
the limit is admitted, with the limit enforced, so that the line between them is learned too.

Where memory is not what decides, rehearsing would only cost time: nothing is rehearsed as long as
neither the size of the model nor any measurement comes near the limit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from autotune.core.errors import AutotuneError
from autotune.core.outcome import Completed, Refused
from autotune.core.record import TrialRecord
from autotune.memory.calibrate import Calibration, Interval
from autotune.memory.rehearsal import Rehearsal
from autotune.trial.spec import TrialSpec

COVERAGE = 0.9
"""Probability that an interval holds the measurement."""

NEAR = 0.5
"""Share of the limit from which on memory decides."""

STATE_BYTES = 16
"""Weights, gradients and two states of a parameter in fp32: what a model needs before any data."""


class Rehearser(Protocol):
    """Rehearses trials, in a process of its own."""

    def rehearse(self, spec: TrialSpec) -> Rehearsal:
        """Return the memory of a trial.

        Raises:
            AutotuneError: If it cannot be rehearsed.
        """

    def close(self) -> None:
        """End the process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What is known of a configuration before it runs.

    Attributes:
        rehearsal: What was counted; None if it was not rehearsed.
        interval: Where the measurement will lie.
        note: Why it could not be rehearsed, or empty.
    """

    rehearsal: Rehearsal | None = None
    interval: Interval | None = None
    note: str = ""

    @property
    def rehearsed_bytes(self) -> int:
        """The peak that was counted; 0 if nothing was."""
        return self.rehearsal.peak_bytes if self.rehearsal else 0


class Screen:
    """Looks at proposals, and learns from what they measured.

    Args:
        rehearser: Rehearses.
        limit_bytes: Most that a trial may use.
        parameters: Of the model, for a first guess whether memory decides at all.
    """

    def __init__(self, rehearser: Rehearser, limit_bytes: int, parameters: int = 0) -> None:
        self._rehearser = rehearser
        self._limit_bytes = limit_bytes
        self._pairs: list[tuple[float, float]] = []
        self._near = parameters * STATE_BYTES > NEAR * limit_bytes

    def look(self, spec: TrialSpec) -> Look:
        """Rehearse a proposal, if memory decides."""
        if not self._near:
            return Look()
        try:
            rehearsal = self._rehearser.rehearse(spec)
        except AutotuneError as error:
            return Look(note=error.message)
        interval = Calibration(self._pairs).predict(max(1, rehearsal.peak_bytes), COVERAGE)
        return Look(rehearsal=rehearsal, interval=interval)

    def refusal(self, look: Look) -> Refused | None:
        """Return the outcome of a proposal that surely does not fit; None if it may."""
        if look.interval is None or look.interval.low <= self._limit_bytes:
            return None
        return Refused(
            needed_bytes=round(look.interval.middle), least_bytes=round(look.interval.low)
        )

    def learn(self, record: TrialRecord) -> None:
        """Take note of what a trial measured."""
        if not isinstance(record.outcome, Completed):
            self._near = self._near or record.outcome is not None
            return
        footprint = record.outcome.measurement.footprint_bytes
        self._near = self._near or footprint > NEAR * self._limit_bytes
        if record.rehearsed_bytes:
            self._pairs.append((record.rehearsed_bytes, footprint))

    def close(self) -> None:
        """End the rehearser."""
        self._rehearser.close()
