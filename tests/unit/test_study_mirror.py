"""The mirror of a run in Optuna's own tables, as other Optuna tools read it."""

from __future__ import annotations

import sqlite3

import optuna
import pytest
from optuna.trial import TrialState

from autotune.core.config import Config
from autotune.core.domains import Choice, Float
from autotune.core.outcome import Crashed
from autotune.core.space import Space
from autotune.core.units import GIB
from autotune.search.quiet import quiet_optuna
from autotune.search.study import NUMBER, OUTCOME, StudyMirror
from tests.knobs import ACCURACY, KNOBS, LOSS, completed, ended, out_of_memory

SPACE = Space(
    name="mine",
    knobs=KNOBS,
    domains={
        "checkpointing": Choice(("none", "full")),
        "lora.rank": Choice((0, 8)),
        "rate": Float(0.5, 2.0),
    },
)
RECORDS = [
    completed(0, loss=2.0, peak=GIB, limit=2 * GIB),
    completed(1, Config({"lora.rank": 8}), loss=1.0, peak=3 * GIB, limit=2 * GIB),
    out_of_memory(2, Config({"rate": 1.5}), needed=4 * GIB, limit=2 * GIB),
    ended(3, Crashed(error="ValueError: x"), Config({"checkpointing": "full"})),
    ended(4, None, Config({"lora.rank": 8, "rate": 0.5})),
]


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path / 'study.db'}"


def tell(url, records, metric=LOSS, name="run"):
    mirror = StudyMirror(url, name, SPACE)
    for record in records:
        mirror.tell(record, metric)
    mirror.close()


def read(url, name="run"):
    with quiet_optuna():
        storage = optuna.storages.RDBStorage(url)
        study = optuna.load_study(study_name=name, storage=storage)
        found = study, study.get_trials(), study.best_trials
    storage.remove_session()
    storage.engine.dispose()
    return found


def test_ended_trials_stand_in_the_study(url):
    tell(url, RECORDS)
    study, trials, best = read(url)
    assert [trial.user_attrs[NUMBER] for trial in trials] == [0, 1, 2, 3]
    assert [trial.state for trial in trials] == [
        TrialState.COMPLETE,
        TrialState.COMPLETE,
        TrialState.PRUNED,
        TrialState.FAIL,
    ]
    assert trials[0].values == [2.0, 1.0]
    assert trials[0].params == {"checkpointing": "none", "lora.rank": 0, "rate": 1.0}
    assert trials[1].params["lora.rank"] == 8
    assert [trial.user_attrs[OUTCOME] for trial in trials[2:]] == ["out-of-memory", "crashed"]
    assert study.metric_names == ["loss", "peak GiB"]
    assert [trial.number for trial in best] == [0]


def test_constraints_are_written_as_optuna_and_as_its_dashboard_read_them(url):
    tell(url, RECORDS)
    _, trials, _ = read(url)
    assert [trial.constraints["memory"] for trial in trials] == [-1.0, 1.0, 2.0, 0.0]
    assert trials[3].constraints["failed"] == 1.0
    assert [trial.system_attrs["constraints"] for trial in trials[1:]] == [[1.0], [2.0], [0.0, 1.0]]


def test_each_trial_is_written_once_also_by_a_resumed_run(url):
    tell(url, [RECORDS[0], RECORDS[0], RECORDS[2]])
    tell(url, RECORDS)
    _, trials, _ = read(url)
    assert [trial.user_attrs[NUMBER] for trial in trials] == [0, 2, 1, 3]


def test_a_metric_to_maximise_keeps_its_sign(url):
    tell(url, [completed(0, loss=0.9, metric=ACCURACY)], metric=ACCURACY)
    study, trials, _ = read(url)
    assert trials[0].values[0] == 0.9
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE"]


def test_values_outside_the_space_are_left_out(url):
    tell(url, [completed(0, Config({"lora.rank": 4, "share": 0.5}))])
    assert read(url)[1][0].params == {"checkpointing": "none", "rate": 1.0}


def test_runs_share_a_database_that_is_written_ahead(url):
    tell(url, RECORDS[:1], name="one")
    tell(url, RECORDS[:2], name="two")
    assert len(read(url, "one")[1]) == 1
    assert len(read(url, "two")[1]) == 2
    connection = sqlite3.connect(url.removeprefix("sqlite:///"))
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_nothing_is_said_to_the_user(url, capsys):
    optuna.logging.set_verbosity(optuna.logging.INFO)
    tell(url, RECORDS)
    assert capsys.readouterr() == ("", "")
