"""A trial as Ray Tune runs one: a trainable whose steps are the reports of an isolated child.

Imported only where Tune runs, since it imports ray as it loads. The actor lives on from trial to
trial (`reuse_actors`), so that its warm parent is warm; each trial is a process of its own all the
same.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from ray.tune import Trainable

from autotune.core.outcome import outcome_from_json
from autotune.core.units import GIB
from autotune.runners.devices import detect_devices
from autotune.runners.local import LocalRunner
from autotune.runners.ray_agent import Home
from autotune.trial.spec import TrialSpec

SPEC = "spec"
"""Key of the trial's specification in Tune's configuration; the knobs' values stand beside it."""

OUTCOME = "outcome"
"""Key of the outcome in the last result of a trial that was not stopped."""

PHASES = "phases"
"""Key of the phases that began since the last result."""


class TrialTrainable(Trainable):
    """Trains one configuration; each step is a report of its loss, the last has its outcome."""

    def setup(self, config: dict[str, Any], home: Home | None = None) -> None:
        """Start the trial that a configuration stands for.

        Args:
            config: With a `TrialSpec` as JSON under `SPEC`.
            home: How the driver's process is set up.
        """
        if home is not None:
            home.enter()
        self._preload = home.preload if home is not None else ()
        self._begin(config)

    def step(self) -> dict[str, Any]:
        """Return the next loss that the trial reports, or its outcome."""
        phases: list[list[Any]] = []
        while True:
            event = self._runner.next()
            if event is None or event.kind == "outcome":
                break
            if event.kind == "phase":
                phases.append([event.data["phase"], event.time])
            elif event.kind == "step":
                done = 100 * event.data["step"] / event.data["steps"]
                return {**event.data, "progress": done, PHASES: json.dumps(phases)}
        if event is None:
            raise RuntimeError("the trial ended without an outcome")
        outcome = outcome_from_json(event.data)
        result = {
            "ended": outcome.tag,
            "peak_gib": outcome.measurement.peak_bytes / GIB,
            **{name: s.value for name, s in getattr(outcome, "scores", {}).items()},
        }
        return {
            **result,
            PHASES: json.dumps(phases),
            OUTCOME: json.dumps(event.data),
            "done": True,
        }

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """End what ran, and start another trial in the same actor."""
        self._runner.close()
        self._begin(new_config)
        return True

    def cleanup(self) -> None:
        """End the trial with everything that it started."""
        self._runner.close()

    def _begin(self, config: dict[str, Any]) -> None:
        spec = TrialSpec.from_json(json.loads(config[SPEC]))
        mine = [device for device in detect_devices() if device.kind == spec.device.kind]
        self._runner = LocalRunner(1, self._preload)
        self._runner.submit(replace(spec, device=mine[0] if mine else spec.device))
