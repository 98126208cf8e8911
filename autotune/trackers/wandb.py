"""Weights & Biases: one run for every trial, grouped by the search.

Its own variables count: `WANDB_MODE`, `WANDB_PROJECT`, `WANDB_ENTITY`, `WANDB_DIR`.
"""

from __future__ import annotations

import os
from pathlib import Path
from uuid import uuid4

import wandb

from autotune.core.errors import UsageError
from autotune.core.observer import RunView
from autotune.trackers.base import Trial

PROJECT = "autotune"
ID_FILE = "wandb.id"
"""In the run's folder: what its trials' ids start with, since other runs may have its name."""


class WeightsAndBiases:
    """Logs configuration, results and the loss by step.

    Raises:
        UsageError: If runs are to be sent and there is no key: it would ask for one in the middle
            of the search.
    """

    def __init__(self) -> None:
        sends = wandb.setup().settings.mode in (None, "online", "run", "shared")
        if sends and not (wandb.api.api_key or os.environ.get("WANDB_IDENTITY_TOKEN_FILE")):
            raise UsageError(
                "wandb has no key to log in with",
                where="--track",
                help="log in: wandb login\nor keep runs on this machine: export WANDB_MODE=offline",
            )
        self._search = self._id = ""
        self._folder = Path()
        self._runs: dict[int, wandb.Run] = {}

    def open(self, run: RunView) -> None:
        """Remember how runs are named and where they are kept."""
        self._search, self._folder = run.spec.name, run.folder
        file = run.folder / ID_FILE
        if not file.is_file():
            file.write_text(f"{uuid4().hex[:8]}\n")
        self._id = file.read_text().strip()

    def began(self, trial: Trial) -> None:
        """Start the trial's run, or go on with it."""
        if trial.number in self._runs:
            return
        started = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            dir=os.environ.get("WANDB_DIR") or str(self._folder),
            group=self._search,
            id=f"{self._id}-{trial.number}",
            name=f"{trial.number}: {trial.label}",
            config=dict(trial.params),
            tags=list(trial.tags.values()),
            resume="allow",
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off"),
        )
        started.define_metric("loss", step_metric="step")
        self._runs[trial.number] = started

    def loss(self, number: int, step: int, loss: float) -> None:
        """Log a point of the curve."""
        self._runs[number].log({"step": step, "loss": loss})

    def finished(self, trial: Trial) -> None:
        """Write the results to the run's summary, the outcome to its tags, and end it."""
        self.began(trial)
        run = self._runs.pop(trial.number)
        run.tags = tuple(trial.tags.values())
        run.summary.update({**trial.metrics, **trial.tags})
        run.finish(exit_code=0 if trial.tags.get("outcome") == "completed" else 1)

    def close(self, status: str) -> None:
        """End the runs of trials that did not end."""
        while self._runs:
            self._runs.popitem()[1].finish(exit_code=1)
