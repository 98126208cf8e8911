"""Peaks that are counted without a training, as many as are cheap beside the trainings.

A rehearsal is exact where the memory model has to extrapolate, but it takes seconds: for a model so
small that a trial takes no longer than that, trying is the better way to know. How many there may
be follows from how long trials took, not from a clock, and every question counts, answered before
or not: a resumed run decides as it would have decided.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from autotune.core.config import Config
from autotune.core.errors import AutotuneError
from autotune.memory.predict import Rehearser, counted
from autotune.trial.spec import TrialSpec

Rehearse = Callable[[Config], int | None]
"""Returns the peak bytes of a configuration without training it, None if it cannot."""

SECONDS = 10.0
"""What a rehearsal takes in a warm process, rather more than less."""

_SHARE = 0.05
"""Share of the trials' time that rehearsals may take."""

_MOST_AT_ONCE = 12
"""Rehearsals before one proposal, at most: a slot waits for it."""


def rehearsed_bytes(spec: TrialSpec, rehearser: Rehearser) -> int | None:
    """Return the peak bytes that a rehearsal of a trial counts, None if it cannot be rehearsed.

    A trial that would raise says so itself when it runs.
    """
    try:
        return counted(spec, rehearser, limited=True).bytes
    except AutotuneError:
        return None


class Rehearsals:
    """Rehearses configurations, and remembers.

    Args:
        rehearse: Counts a peak; None if nothing can.
        seconds: What one takes; 0 if they cost nothing.
    """

    def __init__(self, rehearse: Rehearse | None = None, seconds: float = 0.0) -> None:
        self._rehearse = rehearse
        self._seconds = seconds
        self._known: dict[Config, int | None] = {}
        self._left = 0

    @property
    def possible(self) -> bool:
        """Whether there is anything to rehearse with."""
        return self._rehearse is not None

    @property
    def left(self) -> int:
        """How many there may still be before this proposal."""
        return self._left

    def begin(self, typical: float) -> None:
        """Begin with a proposal.

        Args:
            typical: Seconds that a trial takes; 0 if that is not known.
        """
        if not self.possible:
            self._left = 0
        elif self._seconds <= 0.0:
            self._left = sys.maxsize
        else:
            self._left = min(_MOST_AT_ONCE, int(_SHARE * typical / self._seconds))

    def affordable(self, spent: float) -> int:
        """Return how many there may have been for the model, after trials took `spent` seconds."""
        if not self.possible:
            return 0
        return sys.maxsize if self._seconds <= 0.0 else int(_SHARE * spent / self._seconds)

    def peak(self, config: Config) -> int | None:
        """Return the peak bytes of a configuration; None if there is no answer, or no time."""
        if self._left <= 0:
            return None
        self._left -= 1
        return self.count(config)

    def count(self, config: Config) -> int | None:
        """Return the same whatever it costs."""
        if self._rehearse is None:
            return None
        if config not in self._known:
            self._known[config] = self._rehearse(config)
        return self._known[config]
