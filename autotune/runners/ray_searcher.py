"""How Ray Tune asks a search and tells it: a searcher that keeps nothing itself.

Imported only where Tune runs, since it imports ray as it loads.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from ray.tune import Callback
from ray.tune.search import Searcher

from autotune.core.outcome import Crashed, Outcome, Stopped
from autotune.runners.ray import REPEATS
from autotune.runners.ray_trainable import OUTCOME, PHASES, SPEC
from autotune.trial.spec import Event, TrialSpec

BEAT_SECONDS = 15.0
"""How often the search is told that the driver is at work."""

_NO_MORE: Any = Searcher.FINISHED  # a string, where Tune's types want a dictionary


class Source(Protocol):
    """The search that Tune drives."""

    @property
    def finished(self) -> bool:
        """Whether there will be no trial any more."""

    def suggest(self) -> TrialSpec | None:
        """Return the next trial; None if there is none yet, or none any more."""

    def hear(self, event: Event) -> None:
        """Take what a trial reported; its outcome comes last."""

    def beat(self) -> None:
        """Say that the driver is at work."""


class StudySearcher(Searcher):
    """Asks a search and tells it everything; keeps nothing, so there is nothing to restore.

    Args:
        source: The search.
    """

    def __init__(self, source: Source) -> None:
        super().__init__()
        self._source = source
        self._trials: dict[str, _Trial] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Return the configuration of the next trial, None for now, or that there is none."""
        spec = None if self._source.finished else self._source.suggest()
        if spec is None:
            return _NO_MORE if self._source.finished else None
        self._trials[trial_id] = _Trial(spec)
        text = json.dumps(spec.to_json())
        return {SPEC: text, "number": spec.number, "set": dict(spec.config)}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Hand on what a trial reported."""
        if (trial := self._trials.get(trial_id)) is not None:
            for event in trial.reports(result):
                self._source.hear(event)

    def on_trial_complete(
        self,
        trial_id: str,
        result: dict[str, Any] | None = None,
        error: bool = False,  # noqa: FBT001, FBT002  (as Tune calls it)
    ) -> None:
        """Hand on how a trial ended, whether by itself, stopped or lost."""
        if (trial := self._trials.pop(trial_id, None)) is not None:
            for event in trial.end(result or {}, failed=error):
                self._source.hear(event)

    def set_search_properties(self, *_: Any, **__: Any) -> bool:
        """Accept whatever Tune would have a searcher look for; the search knows."""
        return True

    def save(self, checkpoint_path: str) -> None:
        """Keep nothing: the study database has everything."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing: `autotune resume` goes on from the study database."""
        return

    def __getstate__(self) -> dict[str, Any]:
        return {}  # the study database has everything


class Pulse(Callback):
    """Lets the search know, as Tune goes on, that the driver is at work.

    Args:
        source: The search.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._last = time.monotonic()

    def on_step_end(self, iteration: int, trials: list[Any], **_: Any) -> None:
        """Say so, every now and then."""
        if time.monotonic() - self._last > BEAT_SECONDS:
            self._last = time.monotonic()
            self._source.beat()

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Let the search know of a trial that Tune repeats, since its worker was lost."""
        data = {"note": "its Ray Tune worker was lost; the trial is repeated"}
        number = int(trial.config["number"])
        self._source.hear(Event(trial=number, kind="repeated", data=data, time=time.time()))

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Trial:
    """A trial that Tune runs: turns its results into events, and its end into an outcome."""

    def __init__(self, spec: TrialSpec) -> None:
        self._number = spec.number
        self._began = time.monotonic()
        self._step = -1

    def reports(self, result: Mapping[str, Any]) -> Iterator[Event]:
        """Yield the phases and the step of a result; one that is delivered again yields nothing."""
        step = int(result.get("step", -1))
        if step > self._step:
            self._step = step
            yield from self._phases(result)
            data = {name: result[name] for name in ("step", "steps", "loss") if name in result}
            yield Event(trial=self._number, kind="step", data=data, time=time.time())

    def end(self, result: Mapping[str, Any], *, failed: bool) -> Iterator[Event]:
        """Yield the outcome: the trial's own, or that of a trial that was stopped or lost."""
        if OUTCOME in result and not failed:
            yield from self._phases(result)
            data = json.loads(result[OUTCOME])
        else:
            data = self._cut_short(failed=failed).to_json()
        yield Event(trial=self._number, kind="outcome", data=data, time=time.time())

    def _phases(self, result: Mapping[str, Any]) -> Iterator[Event]:
        for phase, when in json.loads(result.get(PHASES, "[]")):
            yield Event(trial=self._number, kind="phase", data={"phase": phase}, time=when)

    def _cut_short(self, *, failed: bool) -> Outcome:
        seconds = time.monotonic() - self._began
        if failed:
            said = f"its Ray Tune worker was lost, and {REPEATS} repetitions of it, too"
            return Crashed(error=said, seconds=seconds)
        step = max(0, self._step)
        return Stopped(step=step, reason="by the scheduler of Ray Tune", seconds=seconds)
