"""A run as an Optuna study in the run's own database, for optuna-dashboard and other Optuna tools.

The search itself does not read it: it is a mirror, written once per ended trial by the driver.
Values are the score in the metric's own direction and peak memory in GiB. Infeasibility is written
twice, as Optuna 5 stores it (one attribute per constraint) and as one list, since optuna-dashboard
0.21 greys infeasible trials by the list alone.
"""

from __future__ import annotations

import sqlite3
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from autotune.core.outcome import Completed, Outcome, OutOfMemory, Paused, Refused
from autotune.core.record import TrialRecord
from autotune.core.space import Space
from autotune.core.units import GIB
from autotune.core.workload import Metric
from autotune.search.encoding import shown_distributions
from autotune.search.lessons import memory_violation, objectives
from autotune.search.optuna_tables import StudyTables
from autotune.search.quiet import quiet_optuna

NUMBER = "autotune:number"
"""User attribute with the number of the trial in its run."""

OUTCOME = "autotune:outcome"
"""User attribute with how the trial ended: the tag of its outcome."""

_LEGACY_CONSTRAINTS = "constraints"
_SQLITE = "sqlite:///"
_BUSY_SECONDS = 2.0
_SERVER: dict[str, Any] = {"pool_pre_ping": True, "connect_args": {"connect_timeout": 10}}


class StudyMirror:
    """Writes ended trials into an Optuna study, each once, also if a run is resumed.

    A trial that pauses stands there as running, with the scores at its rungs as intermediate
    values, until it ends.

    Args:
        url: Database, as SQLAlchemy spells it: `sqlite:///results/my-run/study.db`.
        study_name: Name of the study; opened if it exists.
        space: The space of the run.
    """

    def __init__(self, url: str, study_name: str, space: Space) -> None:
        self._name = study_name
        self._space = space
        self._distributions = shown_distributions(space)
        with quiet_optuna():
            self._storage = _open(url)
            self._tables = StudyTables(self._storage)
        self._study: optuna.Study | None = None
        self._written: set[int] = set()
        self._paused: dict[int, int] = {}

    def tell(self, record: TrialRecord, metric: Metric) -> None:
        """Write a trial that ended, unless it stands there already or has not ended.

        Args:
            record: The trial.
            metric: What is searched for; the same in every call.

        Raises:
            Exception: What the library of the database raises; the call may be repeated.
        """
        if record.outcome is None:
            return
        try:
            with quiet_optuna():
                study = self._open_study(metric)
                if record.number not in self._written:
                    self._write(study, record.number, self._trial(record, record.outcome, metric))
        except StorageInternalError as error:
            self._study = None
            raise (error.__cause__ or error) from None
        except BaseException:
            self._study = None  # what got through is looked up before the next attempt
            raise

    def close(self) -> None:
        """Give back the connections to the database."""
        self._storage.remove_session()
        self._storage.engine.dispose()

    def _write(self, study: optuna.Study, number: int, trial: FrozenTrial) -> None:
        known = self._paused.get(number)
        if known is None:
            known = self._tables.add_trial(study._study_id, trial)
        else:
            for step, value in trial.intermediate_values.items():
                self._storage.set_trial_intermediate_value(known, step, value)
            for name, note in trial.user_attrs.items():
                self._storage.set_trial_user_attr(known, name, note)
            for name, mark in trial.system_attrs.items():
                self._storage.set_trial_system_attr(known, name, mark)
            if trial.state.is_finished():
                self._storage.set_trial_state_values(known, trial.state, trial.values)
        if trial.state.is_finished():
            self._written.add(number)
            self._paused.pop(number, None)
        else:
            self._paused[number] = known

    def _open_study(self, metric: Metric) -> optuna.Study:
        if self._study is None:
            self._study = optuna.create_study(
                study_name=self._name,
                storage=self._storage,
                directions=["maximize" if metric.maximize else "minimize", "minimize"],
                load_if_exists=True,
            )
            self._study.set_metric_names([metric.name, "peak GiB"])
            ours = self._tables.noted_trials(self._study._study_id, NUMBER)
            self._written = {number for number, _, ended in ours if ended}
            self._paused = {number: key for number, key, ended in ours if not ended}
        return self._study

    def _trial(self, record: TrialRecord, outcome: Outcome, metric: Metric) -> FrozenTrial:
        domains = self._space.domains
        values = record.config.complete(self._space.knobs)
        params = {n: v for n, v in values.items() if n in domains and v in domains[n]}
        constraints = {"memory": memory_violation(record, record.limit_bytes)}
        if not isinstance(outcome, Completed | Paused | OutOfMemory | Refused):
            constraints["failed"] = 1.0
        score, point = record.score(metric), objectives(record, metric)
        return create_trial(
            state=_state(outcome, whole=point is not None),
            values=None if score is None or point is None else (score.value, point[1] / GIB),
            params=params,
            distributions={name: self._distributions[name] for name in params},
            user_attrs=self._notes(record, outcome),
            system_attrs={_LEGACY_CONSTRAINTS: list(constraints.values())},
            constraints=constraints,
            intermediate_values={
                rung.step: rung.scores[metric.name].value
                for rung in record.rungs
                if metric.name in rung.scores
            },
        )

    def _notes(self, record: TrialRecord, outcome: Outcome) -> dict[str, Any]:
        return {
            NUMBER: record.number,
            OUTCOME: outcome.tag,
            "autotune:configuration": record.config.describe(self._space.knobs),
            "autotune:origin": str(record.origin),
            "autotune:summary": outcome.summary,
        }


def _state(outcome: Outcome, *, whole: bool) -> TrialState:
    if whole:
        return TrialState.COMPLETE
    if isinstance(outcome, Paused):
        return TrialState.RUNNING
    left = isinstance(outcome, OutOfMemory | Refused) or outcome.rungs
    return TrialState.PRUNED if left else TrialState.FAIL


def _open(url: str) -> RDBStorage:
    """Open the storage; SQLite with a write-ahead log, so that reading never waits for writing."""
    if not url.startswith(_SQLITE):
        return RDBStorage(url, engine_kwargs=_SERVER)
    path = url.removeprefix(_SQLITE)

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, check_same_thread=False)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        return connection

    return RDBStorage(url, engine_kwargs={"creator": connect})
