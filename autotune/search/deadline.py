"""What is left of a run: trials, and seconds of all its slots together.

It follows from when the trials that ended began and how long they took, not from a clock, so that a
resumed run decides as it would have decided.
"""

from __future__ import annotations

import math
import statistics
from bisect import bisect_right

_LEAST_INITIAL, _INITIAL_SHARE = 4, 3
_LAST = 2.5
"""Trials for which each slot must have time left, for one to be fast and another to verify it."""


class Deadline:
    """Counts what trials cost.

    Args:
        trials: How many there will be; 0 if that is open.
        time_limit: Seconds of the run; None if that is open.
        slots: Trials side by side.
    """

    def __init__(self, trials: int = 0, time_limit: float | None = None, slots: int = 1) -> None:
        self._trials = trials
        self._slots = slots
        self._seconds = math.inf if time_limit is None else time_limit * slots
        self._took: dict[int, float] = {}
        self._began: dict[int, float] = {}

    @property
    def timed(self) -> bool:
        """Whether time is limited."""
        return math.isfinite(self._seconds)

    @property
    def trials(self) -> int:
        """How many trials there will be; 0 if that is open."""
        return self._trials

    @property
    def spent_seconds(self) -> float:
        """Seconds that trials took which ended."""
        return math.fsum(self._took.values())  # exact, so that the order does not matter

    @property
    def spent_trials(self) -> int:
        """Trials that ended."""
        return len(self._took)

    def told(self, number: int, seconds: float, began: float = 0.0) -> None:
        """Learn that a trial ended that was not refused.

        Args:
            number: Of the trial.
            seconds: What it took.
            began: When it began; 0 if that is unknown.
        """
        self._took[number] = seconds
        self._began[number] = began

    @property
    def between_seconds(self) -> float:
        """Seconds between the end of a trial and the begin of the next, in the middle of all.

        The middle, since where a run was interrupted there may be days.
        """
        if not self.timed:
            return 0.0
        order = sorted((began, n) for n, began in self._began.items() if began > 0.0)
        ends = sorted(began + self._took[n] for began, n in order)
        gaps = []
        for began, _ in order:
            before = bisect_right(ends, began)
            if before:
                gaps.append(began - ends[before - 1])
        return statistics.median(gaps) if gaps else 0.0

    def seconds_left(self, running: float = 0.0) -> float:
        """Return the seconds that are left, of all slots together.

        Args:
            running: Seconds that the trials will take that run.
        """
        between = self.between_seconds * self.spent_trials
        return max(0.0, self._seconds - self.spent_seconds - between - running)

    def trials_left(self, running: int = 0) -> float:
        """Return the trials that are left, as many as run already taken off."""
        return self._trials - self.spent_trials - running if self._trials else math.inf

    def allows_two(self, seconds: float, running: float = 0.0) -> bool:
        """Whether a fast trial can be followed by a lean one that verifies what it claims.

        Args:
            seconds: What a trial typically takes; 0 if that is not known.
            running: As for `seconds_left`.
        """
        return self.seconds_left(running) > _LAST * self._slots * seconds

    def initial(self, most: int, seconds: float) -> int:
        """Return how many trials are spread over the space before a model is believed.

        Args:
            most: Of them.
            seconds: What a trial typically takes; 0 if that is not known.
        """
        expected = float(self._trials or math.inf)
        if self.timed and seconds > 0.0:
            expected = min(expected, self._seconds / (seconds + self.between_seconds))
        if not math.isfinite(expected):
            return most
        return min(most, max(_LEAST_INITIAL, int(expected) // _INITIAL_SHARE))
