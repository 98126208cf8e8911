"""Optuna's own tables of a study, written a whole trial at a time.

Optuna's storage writes a new trial attribute by attribute, each with a look-up of its own: some
seventy statements. The same rows are six statements here, and the same trial when it is read. The
tables are those of Optuna's schema `SCHEMA`, which has stood since Optuna 3.2; a database of
another schema is written by Optuna itself, slowly.
"""

from __future__ import annotations

import json
from typing import Any

from optuna.distributions import distribution_to_json
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial

SCHEMA = "v3.2.0.a"

_STUDIES: Any = models.StudyModel.__table__
_TRIALS: Any = models.TrialModel.__table__
_NOTES: Any = models.TrialUserAttributeModel.__table__


class StudyTables:
    """The tables of a storage.

    Args:
        storage: Of the study, whose tables are there.
    """

    def __init__(self, storage: RDBStorage) -> None:
        self._storage = storage
        self._known = storage.get_current_version() == SCHEMA

    def add_trial(self, study: int, trial: FrozenTrial) -> int:
        """Write a new trial into a study, in one transaction.

        Args:
            study: Optuna's key of the study.
            trial: The trial; it gets the next free number of the study.

        Returns:
            Optuna's key of the trial.
        """
        if not self._known:
            return self._storage.create_new_trial(study, template_trial=trial)
        with self._storage.engine.begin() as connection:
            # Other programs may add trials, too; whoever holds this row gives the next number.
            mine = _STUDIES.c.study_id == study
            connection.execute(_STUDIES.select().where(mine).with_for_update())
            row = {"study_id": study, "state": trial.state, **_times(trial)}
            added: Any = connection.execute(_TRIALS.insert(), row)
            (key,) = added.inserted_primary_key
            earlier = (_TRIALS.c.study_id == study) & (_TRIALS.c.trial_id < key)
            latest = _TRIALS.select().with_only_columns(_TRIALS.c.number).where(earlier)
            before = connection.execute(latest.order_by(_TRIALS.c.trial_id.desc()).limit(1))
            number = before.scalar_one_or_none()
            given = {"number": 0 if number is None else number + 1}
            connection.execute(_TRIALS.update().where(_TRIALS.c.trial_id == key), given)
            for table, rows in _rows(trial).items():
                if rows:
                    connection.execute(table.insert(), [{"trial_id": key, **row} for row in rows])
        return int(key)

    def noted_trials(self, study: int, note: str) -> list[tuple[Any, int, bool]]:
        """Return the trials of a study that have a user attribute, without loading them.

        Args:
            study: Optuna's key of the study.
            note: Name of the attribute.

        Returns:
            For each: the attribute's value, Optuna's key of the trial, and whether it has ended.
        """
        if not self._known:
            trials = self._storage.get_all_trials(study, deepcopy=False)
            noted = [trial for trial in trials if note in trial.user_attrs]
            return [(t.user_attrs[note], t._trial_id, t.state.is_finished()) for t in noted]
        asked = (
            _TRIALS.join(_NOTES, _NOTES.c.trial_id == _TRIALS.c.trial_id)
            .select()
            .with_only_columns(_NOTES.c.value_json, _TRIALS.c.trial_id, _TRIALS.c.state)
            .where(_TRIALS.c.study_id == study, _NOTES.c.key == note)
        )
        with self._storage.engine.connect() as connection:
            found = connection.execute(asked).all()
        return [(json.loads(value), int(key), state.is_finished()) for value, key, state in found]


def _times(trial: FrozenTrial) -> dict[str, Any]:
    """Return when a trial began and ended as Optuna keeps it: in UTC, though without a zone."""
    model = models.TrialModel(
        datetime_start=trial.datetime_start, datetime_complete=trial.datetime_complete
    )
    return {
        "datetime_start": model._datetime_start_utc,
        "datetime_complete": model._datetime_complete_utc,
    }


def _rows(trial: FrozenTrial) -> dict[Any, list[dict[str, Any]]]:
    """Return what stands of a trial in tables beside its own."""
    return {
        models.TrialParamModel.__table__: [
            {
                "param_name": name,
                "param_value": trial.distributions[name].to_internal_repr(value),
                "distribution_json": distribution_to_json(trial.distributions[name]),
            }
            for name, value in trial.params.items()
        ],
        models.TrialValueModel.__table__: [
            dict(zip(("objective", "value", "value_type"), (index, *stored), strict=True))
            for index, value in enumerate(trial.values or ())
            for stored in (models.TrialValueModel.value_to_stored_repr(value),)
        ],
        models.TrialIntermediateValueModel.__table__: [
            {"step": step, "intermediate_value": stored, "intermediate_value_type": kind}
            for step, value in trial.intermediate_values.items()
            for stored, kind in (
                models.TrialIntermediateValueModel.intermediate_value_to_stored_repr(value),
            )
        ],
        _NOTES: _attributes(trial.user_attrs),
        models.TrialSystemAttributeModel.__table__: _attributes(trial.system_attrs),
    }


def _attributes(found: dict[str, Any]) -> list[dict[str, str]]:
    return [{"key": key, "value_json": json.dumps(value)} for key, value in found.items()]
