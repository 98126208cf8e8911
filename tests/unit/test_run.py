"""Runs as users open them, and the folders they live in."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from autotune.core.errors import BadValue, MissingLibrary, StorageError, UnknownName
from autotune.core.record import TrialRecord
from autotune.storage.places import cache_path, log_path, new_run_folder, study_path
from autotune.storage.run import Run, find_run
from autotune.storage.store import Store
from tests.studies import ENDS, KNOBS, METRIC, STARTED, completed, make_spec, trial

RECORDS = (
    trial(0, {}, completed(0.9, mib=400), on_front=True),
    trial(1, {"precision": "bf16"}, completed(0.8, mib=100), on_front=True),
    trial(2, {"chunks": 4}, completed(0.7, mib=300)),
    trial(3, {"rate": 0.5}, ENDS[2]),
    trial(4, {"rate": 0.25}),
)


def record_run(
    results: Path, name: str, records: tuple[TrialRecord, ...] = (), at: float = STARTED
) -> Path:
    folder = new_run_folder(results, name)
    with Store.open(study_path(folder), clock=lambda: at) as store:
        store.start_run(make_spec(name))
        for record in records:
            store.add_trial(name, replace(record, outcome=None), KNOBS)
            if record.outcome is not None:
                store.finish_trial(name, record, METRIC)
        store.finish_run(name, "done")
    return folder


@pytest.fixture
def results(tmp_path: Path) -> Path:
    record_run(tmp_path / "results", "old", RECORDS, STARTED)
    record_run(tmp_path / "results", "new", RECORDS[:1], STARTED + 10)
    record_run(tmp_path / "results", "middle", (), STARTED + 5)
    return tmp_path / "results"


def test_run_holds_what_was_recorded(results: Path) -> None:
    run = Run.open("old", results)
    assert (run.name, run.status, run.folder) == ("old", "done", results / "old")
    assert run.spec == make_spec("old")
    assert run.metric == METRIC
    assert run.budget.total_bytes == make_spec().budget_bytes
    assert run.records == run.trials == RECORDS
    assert len(run) == 5
    assert run.counts() == {"completed": 3, "out-of-memory": 1, "interrupted": 1}
    assert repr(run) == "Run('old', done: 3 completed, 1 interrupted, 1 out-of-memory)"
    assert run.knob_values(1) == {"precision": "bf16", "chunks": 1, "rate": 1.0}
    assert run.log(3) == log_path(results / "old", 3) == results / "old/trials/3/log.txt"


def test_front_and_picks_are_computed(results: Path) -> None:
    run = Run.open("old", results)
    assert [record.number for record in run.front()] == [1, 0]
    picks = run.picks()
    assert picks.best_accuracy == RECORDS[0]
    assert picks.least_memory == RECORDS[1]


def test_trial_is_had_by_number_or_text(results: Path) -> None:
    run = Run.open("old", results)
    assert run["3"] == run[3] == run.trial(3) == RECORDS[3]
    with pytest.raises(UnknownName, match="run 'old' has no trial '17'") as caught:
        run["17"]
    assert caught.value.help == "its trials are 0 to 4"


def test_run_is_named_in_many_ways(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("old", results / "old", str(results / "old") + "/", results / "old/study.db"):
        assert Run.open(text, results).name == "old"
    monkeypatch.chdir(results / "old")
    assert Run.open("study.db", "nowhere").name == "old"


def test_latest_is_the_one_started_last(results: Path) -> None:
    assert Run.open(results=results).name == "new"
    assert Run.open("latest", results).name == "new"


def test_broken_folder_does_not_hide_the_latest_run(results: Path) -> None:
    (results / "broken").mkdir()
    study_path(results / "broken").write_text("no database at all, only text\n" * 50)
    assert Run.open(results=results).name == "new"
    with pytest.raises(StorageError, match="is not a study database"):
        Run.open("broken", results)


def test_folder_that_was_renamed_still_opens(results: Path) -> None:
    (results / "old").rename(results / "kept")
    run = Run.open("kept", results)
    assert (run.name, run.folder) == ("old", results / "kept")


def test_unknown_run_says_what_is_there(results: Path) -> None:
    with pytest.raises(UnknownName, match="unknown run 'midle'") as caught:
        Run.open("midle", results)
    assert caught.value.help == "did you mean 'middle'?  known: middle, new, old"


def test_no_run_at_all_says_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="there is no run in") as caught:
        Run.open(results=tmp_path / "nothing")
    assert "autotune run --budget" in (caught.value.help or "")


def test_run_and_trial_in_one_text(results: Path) -> None:
    assert find_run("old/3", results)[1] == 3
    assert find_run("latest/0", results)[0].name == "new"
    assert find_run(f"{results / 'old'}/2", results)[1] == 2
    for text in (None, "new", str(results / "new")):
        run, number = find_run(text, results)
        assert (run.name, number) == ("new", None)
    with pytest.raises(UnknownName, match="no trial '9'"):
        find_run("old/9", results)


def test_runs_may_share_a_database(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    with Store.open(url) as store:
        for name in ("one", "two"):
            store.start_run(make_spec(name))
            store.add_trial(name, trial(0), KNOBS)
    run, number = find_run("one/0", tmp_path / "results", url)
    assert (run.name, run.folder, number) == ("one", tmp_path / "results/one", 0)
    assert Run.open(results=tmp_path, storage=url).name == "two"
    with pytest.raises(UnknownName, match="unknown run 'three'"):
        Run.open("three", tmp_path, url)


def test_data_frame_has_scores_memory_and_every_knob(results: Path) -> None:
    table = Run.open("old", results).to_pandas()
    assert list(table.index) == [0, 1, 2, 3, 4]
    assert table.loc[1, "knob.precision"] == "bf16"
    assert table.loc[1, "knob.chunks"] == 1
    assert table.loc[0, "accuracy"] == 0.9
    assert table.loc[1, "peak_gib"] == 100 / 1024
    assert table["status"].value_counts()["completed"] == 3
    assert len(Run.open("middle", results).to_pandas()) == 0


def test_data_frame_without_pandas_says_what_to_install(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingLibrary, match="needs pandas") as caught:
        Run.open("old", results).to_pandas()
    assert caught.value.help == "pip install 'autotune-memory[pandas]'"


def test_new_folder_has_room_for_trials_and_cache(tmp_path: Path) -> None:
    folder = new_run_folder(tmp_path / "a" / "results", "mine")
    assert folder == tmp_path / "a" / "results" / "mine"
    assert (folder / "trials").is_dir()
    assert cache_path(folder).is_dir()


def test_new_folder_overwrites_nothing(tmp_path: Path) -> None:
    (new_run_folder(tmp_path, "mine") / "precious").write_text("kept")
    with pytest.raises(StorageError, match="never overwritten") as caught:
        new_run_folder(tmp_path, "mine")
    assert "autotune resume mine" in (caught.value.help or "")
    assert "--name" in (caught.value.help or "")
    assert (tmp_path / "mine" / "precious").read_text() == "kept"


def test_default_names_differ(tmp_path: Path) -> None:
    made = [new_run_folder(tmp_path, objective="causal_lm", now=STARTED).name for _ in range(3)]
    assert re.fullmatch(r"causal-lm-011[123]-\d{4}", made[0])
    assert made[1:] == [f"{made[0]}-2", f"{made[0]}-3"]


@pytest.mark.parametrize("name", ["", "a/b", "../up", ".hidden", "latest", "with space", "-x"])
def test_names_must_be_those_of_folders(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadValue, match="cannot be the name of a run"):
        new_run_folder(tmp_path / "results", name)
    assert not (tmp_path / "results").exists()


def test_results_that_cannot_be_written_are_said(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file in its place")
    with pytest.raises(StorageError, match="cannot create a run under") as caught:
        new_run_folder(tmp_path / "results", "mine")
    assert "--results DIR" in (caught.value.help or "")
