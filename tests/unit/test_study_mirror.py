"""The mirror of a run in Optuna's own tables, as other Optuna tools read it."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import optuna
import pytest
from optuna.trial import TrialState

from autotune.core.config import Config
from autotune.core.domains import Choice, Float
from autotune.core.outcome import Crashed, Paused, Rung, Score
from autotune.core.space import Space
from autotune.core.units import GIB
from autotune.search import optuna_tables
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


def paused(number):
    """A trial that paused after a third of its training."""
    score = Score(value=1.5, stderr=0.1, n=10)
    rung = Rung(share=1 / 3, step=4, steps=12, scores={LOSS.name: score})
    return ended(number, Paused(rungs=(rung,)))


def rows(url):
    """What stands in Optuna's tables, without keys and times."""
    found = {}
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        for (table,) in tables.fetchall():
            columns = connection.execute(f"PRAGMA table_info({table})").fetchall()
            keys = {name for _, name, *_, key in columns if key or name.startswith("datetime_")}
            kept = ", ".join(name for _, name, *_ in columns if name not in keys)
            found[table] = sorted(map(repr, connection.execute(f"SELECT {kept or 1} FROM {table}")))
    return found


def test_what_is_written_at_once_is_what_optuna_writes_piece_by_piece(url, tmp_path, monkeypatch):
    records = [*RECORDS, completed(5, loss=float("inf")), paused(6), paused(7)]
    tell(url, records)
    monkeypatch.setattr(optuna_tables, "SCHEMA", "of another version")
    other = f"sqlite:///{tmp_path / 'other.db'}"
    tell(other, records)
    tell(other, records)
    assert rows(url) == rows(other)
    assert len(rows(url)["trial_params"]) > 10
    assert len(rows(url)["trial_intermediate_values"]) == 2


def test_a_paused_trial_ends_in_its_place_after_a_resume(url):
    tell(url, [RECORDS[0], paused(1)])
    assert [trial.state for trial in read(url)[1]] == [TrialState.COMPLETE, TrialState.RUNNING]
    tell(url, [RECORDS[0], completed(1, loss=0.5)])
    _, trials, _ = read(url)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE, TrialState.COMPLETE]
    assert trials[1].values == [0.5, 1.0]


def test_other_programs_may_add_trials(url):
    tell(url, RECORDS[:1])
    study, _, _ = read(url)
    study.add_trial(optuna.trial.create_trial(values=[9.0, 9.0]))
    tell(url, RECORDS[:2])
    _, trials, _ = read(url)
    assert [trial.number for trial in trials] == [0, 1, 2]
    assert [trial.user_attrs.get(NUMBER) for trial in trials] == [0, None, 1]


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
