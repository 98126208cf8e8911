"""The parts of the loop, over a replay: what is repeated, in which order trials are proposed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from autotune.core.config import Config
from autotune.core.record import Origin, TrialRecord
from autotune.driver import Search
from autotune.memory.rehearsal import CannotRehearse, Rehearsal
from autotune.plan import plan_again
from autotune.runners.replay import ReplayRunner
from autotune.search.optuna import OptunaProposer
from autotune.search.screen import Screen
from autotune.search.study import StudyMirror
from autotune.storage.run import Run
from autotune.storage.store import Store
from autotune.trial.spec import TrialSpec
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
    trials = len(run.records) + 1
    search.plan = replace(search.plan, spec=replace(search.plan.spec, trials=trials))
    search.remember(run.records)
    assert [record.number for record in search.front] == [r.number for r in run.front()]
    assert search.seconds_before == pytest.approx(sum(r.outcome.seconds for r in run.records))
    assert search.submit_next()
    assert max(search.records) == len(run.records)
    assert not search.submit_next()


class Foretold:
    """Rehearses without a process: every configuration in bf16 needs far too much."""

    def rehearse(self, spec: TrialSpec, *, record: bool = False) -> Rehearsal:
        peak = 10**13 if spec.config.get("precision") == "bf16" else 10**6
        return Rehearsal(
            peak_bytes=peak, phase="steady", within="backward", operator="aten.mm.default",
            anatomy={}, peaks={}, parameters=1, trained_parameters=1,
        )  # fmt: skip

    def close(self) -> None:
        """Nothing to end."""


def test_what_surely_does_not_fit_is_recorded_and_costs_no_trial(search: Search) -> None:
    limit = search.plan.budget.limit_bytes
    search.screen = Screen(Foretold(), limit, parameters=10**12)
    for _ in range(4):
        assert search.submit_next()
    refused = [record for record in search.records.values() if record.refused]
    assert refused
    assert all(record.config["precision"] == "bf16" for record in refused)
    assert not {record.number for record in refused} & set(search.running)
    assert len(search.running) == 4
    kept = {record.number: record for record in search.store.records(RUN)}
    for record in refused:
        assert kept[record.number].outcome == record.outcome
        assert kept[record.number].rehearsed_bytes == 10**13
        assert record.outcome.least_bytes > limit
    trained = [record for record in search.records.values() if not record.refused]
    assert all(record.rehearsed_bytes == 10**6 for record in trained)


def test_the_search_ends_after_as_many_trainings_as_were_asked_for(search: Search) -> None:
    search.screen = Screen(Foretold(), search.plan.budget.limit_bytes, parameters=10**12)
    search.plan = replace(search.plan, spec=replace(search.plan.spec, trials=3))
    assert [search.submit_next() for _ in range(4)] == [True, True, True, False]
    assert sum(not record.refused for record in search.records.values()) == 3


class Unfollowed(Foretold):
    """Cannot rehearse anything."""

    def rehearse(self, spec: TrialSpec, *, record: bool = False) -> Rehearsal:
        raise CannotRehearse("an operator cannot be followed without values")


def test_why_a_trial_was_not_rehearsed_is_recorded(search: Search) -> None:
    search.screen = Screen(Unfollowed(), search.plan.budget.limit_bytes, parameters=10**12)
    assert search.submit_next()
    told = [event for event in search.store.events(RUN) if event.kind == "screen"]
    assert [event.trial for event in told] == [0]
    assert "without values" in told[0].data["note"]
