"""A command line whose trials are replayed at a pace: a real run, in seconds, without training.

`python -m tests.replayed_run PACE run --budget 16GB …` is `autotune run --budget 16GB …`, but that
trials end as recorded ones did and that PACE seconds pass before each event.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import autotune.tuner
from autotune.__main__ import main
from autotune.plan import Settings
from autotune.runners import devices
from autotune.runners.replay import ReplayRunner
from autotune.trial.spec import Event
from tests.cli.recorded import DEVICE, facts, records

ROOT = Path(__file__).resolve().parents[1]
RUN = ("run", "--budget", "16GB", "--sampler", "random", "--seed", "3", "--device", "cpu")


class PacedRunner(ReplayRunner):
    """Replays the recorded run, and lets time pass between events."""

    def __init__(self, pace: float, slots: int = 1) -> None:
        super().__init__(facts(), records(), slots)
        self.pace = pace
        self.events = 0

    def next(self, timeout: float | None = None) -> Event | None:
        """Wait a moment, then return the next event."""
        time.sleep(self.pace)
        self.events += 1
        return super().next(timeout)


def start_run(pace: float, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Start such a command line in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.replayed_run", str(pace), *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def _run(pace: float, arguments: list[str]) -> int:
    def runner(settings: Settings) -> ReplayRunner:
        return PacedRunner(pace, settings.jobs or 1)

    autotune.tuner.local_runner = runner  # type: ignore[assignment]  # as if it trained
    devices.cpu_device = lambda: DEVICE
    devices._cuda_devices = list
    return main(arguments)


if __name__ == "__main__":
    sys.exit(_run(float(sys.argv[1]), sys.argv[2:]))
