"""The same search, driven by Ray Tune instead of the loop of `autotune/tuner.py`.

Tune asks when it has room for a trial, and tells what it reported and how it ended; what is
proposed, screened, recorded and learned is the search's own business, as ever.
"""

from __future__ import annotations

import itertools

from autotune.driver import Search
from autotune.fit import check_that_something_fits, too_large
from autotune.runners.ray_tune import TuneRunner
from autotune.trial.spec import Event, TrialSpec

FOLDER = "tune"
"""Folder of the run with Tune's experiments, one for each part of the run."""


class DrivenSearch:
    """A search as Tune sees it.

    Args:
        state: The search.
        runner: Its runner.
    """

    def __init__(self, state: Search, runner: TuneRunner) -> None:
        self._state = state
        self._runner = runner
        self._began = runner.now() - state.seconds_before
        self._more = True
        self.failure: Exception | None = None

    @property
    def finished(self) -> bool:
        """Whether no trial will be suggested any more."""
        return not self._more

    def suggest(self) -> TrialSpec | None:
        """Return the next trial; None if there is none yet, or none any more."""
        state, limit = self._state, self._state.plan.spec.time_limit
        if limit is not None and self._runner.now() - self._began >= limit:
            self._more = False
        self._heed()
        if not self._more or state.undecided or len(state.running) >= self._runner.slots:
            return None
        try:
            self._more = state.submit_next()
        except Exception as error:  # noqa: BLE001  Tune would only log it
            self.failure, self._more = error, False
        return self._runner.offered.pop() if self._runner.offered else None

    def hear(self, event: Event) -> None:
        """Take what a trial reported."""
        try:
            self._state.hear(event)
            if too_large(self._state) is not None:
                self._more = False
        except Exception as error:  # noqa: BLE001  Tune would only log it
            self.failure, self._more = error, False

    def beat(self) -> None:
        """Say that the driver is at work, and end the search if somebody has asked for it."""
        self._state.store.heartbeat(self._state.name)
        self._heed()

    def _heed(self) -> None:
        if self._state.stop_if_asked():
            self._more = False


def search_by_tune(state: Search, runner: TuneRunner) -> str:
    """Let Ray Tune drive a search to its end.

    Args:
        state: Who takes part, and what is known so far.
        runner: The search's runner.

    Returns:
        How the run ended: `"done"`, or `"interrupted"` by Ctrl-C.

    Raises:
        NothingFits: If not even the smallest configuration fits the budget.
    """
    driven = DrivenSearch(state, runner)
    parts = (state.folder / FOLDER / f"part-{number}" for number in itertools.count(1))
    folder = next(folder for folder in parts if not folder.exists())
    try:
        runner.drive(driven, folder)
    except KeyboardInterrupt:
        state.interrupt()
        return "interrupted"
    if driven.failure is not None:
        raise driven.failure
    if state.stopped or state.running or not driven.finished:
        state.interrupt()
        return "interrupted"
    check_that_something_fits(state)
    return "done"
