"""Named queries run, on an empty run and a full one, and answer what they say they do."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from autotune.core.errors import UnknownName
from autotune.storage.named_queries import QUERIES, NamedQuery, find_query
from autotune.storage.query import QueryResult, run_query
from autotune.storage.run import Run
from autotune.storage.store import Store
from tests.benchmarks.queries import write_trials
from tests.cli.recorded import record_run
from tests.studies import make_spec

REFERENCE = Path(__file__).resolve().parents[2] / "results" / "reference"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record_run(tmp_path_factory.mktemp("results"))


def answer(where: Path, name: str) -> QueryResult:
    return run_query(where, find_query(name).sql)


def rows(where: Path, name: str) -> list[dict[str, object]]:
    found = answer(where, name)
    return [dict(zip(found.columns, row, strict=True)) for row in found.rows]


def test_there_are_ten_at_least_and_names_differ() -> None:
    names = [query.name for query in QUERIES]
    assert len(names) >= 10
    assert len(set(names)) == len(names)
    assert all(query.question.endswith("?") for query in QUERIES)


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query.name)
def test_every_query_runs(query: NamedQuery, recorded: Path, tmp_path: Path) -> None:
    for where in (recorded, REFERENCE / "cpu-default", REFERENCE / "lstm"):
        assert run_query(where, query.sql).columns
    with Store.open(tmp_path / "study.db") as store:
        store.start_run(make_spec())
    assert run_query(tmp_path, query.sql).rows == []


def test_front_and_near_best_are_those_of_the_program(recorded: Path) -> None:
    for where in (recorded, REFERENCE / "cpu-default", REFERENCE / "lstm"):
        run = Run.open(where)
        assert [r["trial"] for r in rows(where, "front")] == [r.number for r in run.front()]
        cheapest = run.picks().cheapest
        assert cheapest is not None
        assert rows(where, "near-best")[0]["trial"] == cheapest.number


def test_outcomes_and_failures_count_every_trial(recorded: Path) -> None:
    counts = {str(r["status"]): r["trials"] for r in rows(recorded, "outcomes")}
    assert counts == Run.open(recorded).counts()
    assert sum(int(str(r["trials"])) for r in rows(recorded, "failures")) == 4


def test_oom_by_knob_has_the_values_of_what_ran_out(recorded: Path) -> None:
    found = rows(recorded, "oom-by-knob")
    assert {r["value"] for r in found if r["knob"] == "precision"} == {"fp32"}
    assert {r["trials"] for r in found} == {1}
    (almost,) = rows(recorded, "almost-fit")
    assert (almost["trial"], almost["needed_gib"]) == (0, 20.5)


def test_anatomy_and_phases_are_of_the_front(recorded: Path) -> None:
    anatomy = rows(recorded, "anatomy-of-front")
    assert [r["trial"] for r in anatomy] == [1, 4, 3]
    assert anatomy[2]["weights"] == pytest.approx(0.3 * 8.1)
    phases = [r for r in rows(recorded, "phases-of-front") if r["kind"] == "allocated"]
    assert phases[2]["steady"] == pytest.approx(8.1)


def test_progress_is_each_new_best(recorded: Path) -> None:
    assert [r["trial"] for r in rows(recorded, "progress")] == [1, 2]


@pytest.mark.parametrize("maximize", [True, False])
def test_progress_after_a_hundred_trials(maximize: bool, tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    write_trials(path, 600)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("update autotune_run set maximize = ?", (maximize,))
    scored = run_query(path, "select trial, score from trials where feasible order by trial").rows
    expected: list[int] = []
    best = None
    for number, score in scored:
        loss = -score if maximize else score
        if best is None or loss < best:
            best = loss
            expected.append(number)
    assert expected[-1] > 100, "else this shows nothing"
    assert [r["trial"] for r in rows(path, "progress")] == expected


def test_fastest_slowest_budget_and_origins(recorded: Path) -> None:
    assert rows(recorded, "fastest")[0]["trial"] == 5
    assert rows(recorded, "slowest")[0]["trial"] == 8
    assert sum(int(str(r["trials"])) for r in rows(recorded, "budget-use")) == 5
    origins = {r["origin"]: r for r in rows(recorded, "origins")}
    assert origins["sampler"]["on_front"] == 2


def test_unknown_names_are_answered_with_near_ones() -> None:
    assert find_query("@oom-by-knob") is find_query("oom-by-knob")
    with pytest.raises(UnknownName) as caught:
        find_query("@oom-by-knobs")
    assert "did you mean 'oom-by-knob'?" in (caught.value.help or "")
