"""MLflow: one run for the search, and one inside it for every trial.

`MLFLOW_TRACKING_URI` says where to; without it a SQLite file in the run's folder takes them.
`MLFLOW_EXPERIMENT_NAME` names the experiment.
"""

from __future__ import annotations

import logging
import os
import time

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME

from autotune.core.observer import RunView
from autotune.trackers.base import Trial

EXPERIMENT = "autotune"
FILE = "mlflow.db"
"""In the run's folder."""

_STATUS = {"done": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}
_RUN, _TRIAL = "autotune.run", "autotune.trial"


class MLflow:
    """Logs parameters, metrics, tags and the loss by step; a resumed search goes on in its run."""

    def __init__(self) -> None:
        self._client: MlflowClient
        self._experiment = self._parent = ""
        self._children: dict[int, str] = {}
        self._open: set[int] = set()

    def open(self, run: RunView) -> None:
        """Find or make the experiment and the run of this search."""
        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of every new table
        where = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{run.folder.resolve() / FILE}"
        self._client = client = MlflowClient(tracking_uri=where)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        known = client.get_experiment_by_name(name)
        self._experiment = known.experiment_id if known else client.create_experiment(name)
        before = self._find(f"tags.`{_RUN}` = '{run.spec.name}'") if run.earlier else None
        self._parent = before or self._create(run.spec.name, {_RUN: run.spec.name})
        client.update_run(self._parent, status="RUNNING")

    def began(self, trial: Trial) -> None:
        """Make the trial's run, with its configuration."""
        self._open.add(trial.number)
        if self._child(trial.number) is None:
            tags = {MLFLOW_PARENT_RUN_ID: self._parent, _TRIAL: str(trial.number)}
            child = self._create(f"{trial.number}: {trial.label}", {**tags, **trial.tags})
            self._children[trial.number] = child
            params = [Param(name, str(value)) for name, value in trial.params.items()]
            self._client.log_batch(child, params=params)

    def loss(self, number: int, step: int, loss: float) -> None:
        """Log a point of the curve."""
        self._client.log_metric(self._children[number], "loss", loss, step=step)

    def finished(self, trial: Trial) -> None:
        """Log results and the outcome, and end the trial's run."""
        self.began(trial)
        child, now = self._children[trial.number], int(1000 * time.time())
        metrics = [Metric(name, value, now, 0) for name, value in trial.metrics.items()]
        tags = [RunTag(name, text) for name, text in trial.tags.items()]
        self._client.log_batch(child, metrics=metrics, tags=tags)
        good = trial.tags.get("outcome") == "completed"
        self._client.set_terminated(child, "FINISHED" if good else "FAILED")
        self._open.discard(trial.number)

    def close(self, status: str) -> None:
        """End the run of the search, and those of trials that did not end."""
        for number in self._open:
            self._client.set_terminated(self._children[number], "KILLED")
        self._client.set_terminated(self._parent, _STATUS.get(status, "FINISHED"))

    def _create(self, name: str, tags: dict[str, str]) -> str:
        tags = {MLFLOW_RUN_NAME: name, **tags}
        return str(self._client.create_run(self._experiment, tags=tags).info.run_id)

    def _child(self, number: int) -> str | None:
        """Return the run of a trial, also one that an earlier part of the search made."""
        if number not in self._children:
            mine = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{self._parent}'"
            found = self._find(f"{mine} and tags.`{_TRIAL}` = '{number}'")
            if found is None:
                return None
            self._children[number] = found
        return self._children[number]

    def _find(self, wanted: str) -> str | None:
        found = self._client.search_runs([self._experiment], wanted, max_results=1)
        return str(found[0].info.run_id) if found else None
