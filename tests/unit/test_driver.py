"""The parts of the loop, over a replay: what is repeated, in which order trials are proposed."""

from __future__ import annotations

from pathlib import Path

import pytest

from autotune.core.config import Config
from autotune.core.record import Origin, TrialRecord
from autotune.driver import Search
from autotune.plan import plan_again
from autotune.runners.replay import ReplayRunner
from autotune.search.optuna import OptunaProposer
from autotune.search.study import StudyMirror
from autotune.storage.run import Run
from autotune.storage.store import Store
from tests.recorded import REFERENCE, RUN


@pytest.fixture
def search(tmp_path: Path) -> Search:
    run = Run.open(RUN, results=REFERENCE)
    plan = plan_again(run.spec)
    store = Store.open(tmp_path / "study.db")
    store.start_run(plan.spec)
    return Search(
        plan=plan,
        store=store,
        mirror=StudyMirror(f"sqlite:///{tmp_path / 'study.db'}", RUN, plan.space),
        proposer=OptunaProposer(
            plan.space,
            plan.context,
            plan.spec.facts.metric,
            limit_bytes=plan.budget.limit_bytes,
        ),
        runner=ReplayRunner(run.spec.facts, run.records, slots=3),
        folder=tmp_path,
    )


def test_the_opening_is_the_baseline_and_the_smallest(search: Search) -> None:
    for _ in range(3):
        assert search.submit_next()
    origins = [search.records[number].origin for number in range(3)]
    assert origins == [Origin.BASELINE, Origin.SMALLEST, Origin.SAMPLER]
    assert search.records[0].config == Config({})
    assert len({record.config for record in search.records.values()}) == 3


def test_what_was_left_unfinished_is_tried_again(search: Search) -> None:
    left = TrialRecord(number=2, config=Config({"precision": "bf16"}), origin=Origin.SAMPLER)
    search.remember([left])
    assert 2 not in search.records
    for _ in range(4):
        assert search.submit_next()
    assert search.records[2].config == left.config
    others = [record.config for number, record in search.records.items() if number != 2]
    assert left.config not in others


def test_outcomes_of_a_run_are_remembered_and_kept_on_the_front(search: Search) -> None:
    run = Run.open(RUN, results=REFERENCE)
    search.remember(run.records)
    assert [record.number for record in search.front] == [r.number for r in run.front()]
    assert search.seconds_before == pytest.approx(sum(r.outcome.seconds for r in run.records))
    assert search.submit_next()
    assert max(search.records) == len(run.records)
