"""Rungs: what they cost, who goes on, and a search on them by the very loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest

from autotune.core.config import Config
from autotune.core.errors import BadValue
from autotune.core.outcome import (
    Completed,
    Measurement,
    Outcome,
    OutOfMemory,
    Paused,
    Peak,
    PeakKind,
    Phase,
    Rung,
    Score,
    Stopped,
)
from autotune.core.parts import FEWEST_STEPS, both, continued, pause_after
from autotune.core.record import Origin, TrialRecord
from autotune.search.encoding import Encoding
from autotune.search.fidelity import FidelitySurrogate
from autotune.search.lessons import Lessons
from autotune.search.optuna import OptunaProposer
from autotune.search.rungs import (
    AUTO_SHARES,
    ByRank,
    Rungs,
    checked_rungs,
    lifts,
    parse_rungs,
    reason_against_pausing,
)
from autotune.search.samplers import Reads
from autotune.search.thaw import RungDeadline, ThawProposer
from autotune.storage.reader import Reader
from autotune.storage.store import Store
from autotune.tuner import search
from tests.benchmarks.search_problems import LOSS, SCALING
from tests.benchmarks.simulated import run_loop, search_of

RUNGS = Rungs(shares=AUTO_SHARES)
SEED = 3


def peaks(size: int) -> Measurement:
    peak = Peak(phase=Phase.STEADY, kind=PeakKind.ALLOCATED, bytes=size)
    return Measurement(peaks=(peak,), steps=10)


def at(
    number: int, *losses: float, size: int = 1, end: float | None = None, **more: object
) -> TrialRecord:
    """A trial that had these losses at the first rungs, and at its end if it has one."""
    rungs = tuple(
        Rung(share=share, step=9, steps=90, seconds=2.0, scores={LOSS.name: Score(value=loss)})
        for share, loss in zip(AUTO_SHARES, losses, strict=False)
    )
    outcome: Outcome = Paused(rungs=rungs, measurement=peaks(size), seconds=2.0)
    if end is not None:
        scores = {LOSS.name: Score(value=end)}
        outcome = Completed(rungs=rungs, measurement=peaks(size), scores=scores)
    return TrialRecord(number=number, config=Config({}), outcome=outcome, limit_bytes=99, **more)


def test_rungs_are_read_as_they_are_typed():
    assert parse_rungs("off") == parse_rungs("") == ()
    assert parse_rungs("auto") == parse_rungs("1/9,1/3") == AUTO_SHARES
    assert parse_rungs("0.25, 1/2") == (0.25, 0.5)
    for wrong in ("1/3,1/9", "2", "0", "1/0", "often", "1/3,1/3"):
        with pytest.raises(BadValue, match="are no rungs"):
            parse_rungs(wrong)
    assert checked_rungs("off", "tune") == ""
    with pytest.raises(BadValue, match="knows no rungs"):
        checked_rungs("auto", "tune")


def test_rungs_that_steps_cannot_tell_apart_are_one():
    assert Rungs.of("auto", 900).shares == AUTO_SHARES
    few = 2 * FEWEST_STEPS
    assert pause_after(1 / 9, few) == pause_after(1 / 3, few) == FEWEST_STEPS
    assert Rungs.of("auto", few).shares == (0.5,)
    assert Rungs.of("auto", 4 * FEWEST_STEPS).shares == (1 / 4, 1 / 3)
    assert not Rungs.of("auto", FEWEST_STEPS).on


def test_costs_are_parts_of_full_trainings():
    costs = {
        1 / 9: at(0, 3.0),
        1 / 3: at(0, 3.0, 2.0),
        1.0: at(0, 3.0, 2.0, end=1.0),
    }
    for cost, record in costs.items():
        assert RUNGS.cost(record, {}) == pytest.approx(cost)
    burst = replace(at(0), outcome=OutOfMemory())
    assert RUNGS.cost(burst, {}) == pytest.approx(1 / 9)
    assert Rungs().cost(burst, {}) == 1.0
    left = replace(at(0), outcome=Stopped(rungs=at(0, 3.0).rungs))
    assert RUNGS.cost(left, {}) == pytest.approx(1 / 9)
    going = replace(at(0, 3.0), outcome=None, paused=at(0, 3.0).outcome)
    assert RUNGS.cost(going, {0: 1 / 3}) == pytest.approx(1 / 3)
    assert RUNGS.spent([at(0, 3.0), at(1, 3.0, 2.0)], {}) == pytest.approx(4 / 9)


def test_ranks_on_several_devices_are_trained_at_once():
    assert reason_against_pausing(Config({})) is None
    reason = reason_against_pausing(Config({"layout.ranks": 2}))
    assert reason is not None
    assert "trained to its end at once" in reason


def test_a_third_of_a_rung_goes_on_the_best_first():
    records = [at(n, loss, size=10) for n, loss in enumerate((3.0, 1.0, 2.0))]
    rule = ByRank(LOSS)
    assert rule.choose(9, records[:2], records[:2], may_start=True) is None
    assert rule.choose(9, records, records, may_start=True) is records[1]
    promoted = [records[0], at(1, 1.0, 0.9, size=10), records[2]]
    assert rule.choose(9, promoted, promoted, may_start=True) is None
    assert rule.choose(9, promoted, promoted, may_start=False) is promoted[1]


def test_ranks_are_fronts_and_spread_within_each():
    # Losses fall as sizes rise, but for the last trial, which is beaten by all others.
    records = [at(n, 5.0 - n, size=10 * n + 1) for n in range(5)]
    beaten = at(5, 9.0, size=90)
    order = [record.number for record in ByRank(LOSS).ranked([*records, beaten], 1 / 9)]
    assert order[0] == 4
    assert order[1] == 0
    assert order[2] == 2
    assert order[-1] == 5


def test_parts_come_to_one_trial():
    first = Paused(
        seconds=2.0,
        measurement=replace(peaks(9), anatomy={"weights": 5}, step_seconds=0.5),
        rungs=at(0, 3.0).rungs,
    )
    last = Completed(seconds=4.0, measurement=replace(peaks(7), steps=90, step_seconds=0.25))
    whole = continued(first, last)
    assert isinstance(whole, Completed)
    assert whole.seconds == 6.0
    assert whole.rungs == first.rungs
    assert whole.measurement.peak_bytes == 9
    assert whole.measurement.steps == 90
    assert whole.measurement.step_seconds == 0.25
    assert whole.measurement.anatomy == {"weights": 5}
    assert both(first.measurement, Measurement()).step_seconds == 0.5


def test_samplers_are_told_what_a_paused_trial_would_have_ended_with():
    ended = [at(n, 3.0 + n, end=2.0 + n) for n in range(3)]
    assert lifts(ended, LOSS) == {AUTO_SHARES[0]: -1.0}
    lessons = Lessons(Encoding(SCALING.space), LOSS, 99, Reads.COMPLETED_AND_PRUNED)
    told = lessons.of([*ended, at(3, 7.0, size=5)])
    assert told[-1].values == [6.0, 5.0]


def test_the_gradient_of_the_surrogate_with_rungs_is_right():
    rng = np.random.default_rng(0)
    surrogate = FidelitySurrogate(np.array([0, 1, 1, 2]))
    points = np.c_[rng.random((14, 4)), np.repeat([0.0, 0.5, 1.0], (4, 4, 6))]
    targets = points @ np.array([1.0, -2.0, 0.5, 0.1, 0.8])
    start = surrogate.expected + 0.3 * rng.standard_normal(len(surrogate.expected))
    _, gradient = surrogate.objective(start, points, targets)
    for index in range(len(start)):
        step = np.zeros_like(start)
        step[index] = 1e-5
        up, down = (surrogate.objective(start + s, points, targets)[0] for s in (step, -step))
        assert gradient[index] == pytest.approx((up - down) / 2e-5, rel=1e-4, abs=1e-6)


def test_cheap_observations_do_not_make_the_model_certain():
    surrogate = FidelitySurrogate(np.array([0]))
    here = np.array([[0.5]])
    many = np.c_[np.full(200, 0.5), np.ones(200)]
    ends = np.array([[0.0, 0.0], [1.0, 0.0]])
    targets = np.r_[0.0, 1.0, np.linspace(1.4, 1.6, 200)]
    posterior = surrogate.given(np.vstack([ends, many]), targets, surrogate.expected)
    once = surrogate.given(
        np.vstack([ends, [[0.5, 0.0]]]), np.array([0.0, 1.0, 0.5]), surrogate.expected
    )
    assert posterior.at(here)[1][0] / posterior.spread > 2 * once.at(here)[1][0] / once.spread


def proposer(trials: int = 0) -> ThawProposer:
    return ThawProposer(
        SCALING.space, SCALING.context, LOSS, seed=SEED, limit_bytes=SCALING.limit_bytes,
        deadline=RungDeadline(trials), rungs=RUNGS,
    )  # fmt: skip


def tpe() -> OptunaProposer:
    return OptunaProposer(
        SCALING.space, SCALING.context, LOSS, seed=SEED, limit_bytes=SCALING.limit_bytes
    )


@pytest.mark.parametrize(("make", "slots"), [(proposer, 1), (tpe, 3)])
def test_a_search_spends_what_it_may(make, slots: int, tmp_path: Path) -> None:
    trials = 4
    records = run_loop(
        SCALING, make(), tmp_path, trials=trials, seed=SEED, slots=slots, rungs="auto"
    )
    assert len(records) > trials
    assert trials - 1 < RUNGS.spent(records, {}) <= trials + 1e-6
    ended = {r.origin for r in records if isinstance(r.outcome, Completed)}
    assert ended == {Origin.SMALLEST, Origin.SAMPLER}
    for record in records:
        assert [rung.share for rung in record.rungs] == list(AUTO_SHARES[: len(record.rungs)])


def test_no_whole_training_is_mixed_with_a_part(tmp_path: Path) -> None:
    with search_of(SCALING, tpe(), tmp_path, trials=4, seed=SEED, rungs="auto") as state:
        search(state)
        paused = [r for r in state.ended if isinstance(r.outcome, Paused)]
        assert paused
        assert all(isinstance(r.outcome, Completed) for r in state.front)
        note = state.climb.note(state.records)
        assert f"{len(paused)} trials are paused" in note
    with Reader.open_read_only(tmp_path / "study.db") as reader:
        assert reader.counts("first")["paused"] == len(paused)
        assert [r for r in reader.records("first") if isinstance(r.outcome, Paused)] == paused
    from autotune.storage.query import run_query

    told = run_query(tmp_path / "study.db", "select count(*) from trials where status = 'paused'")
    assert told.rows == [(len(paused),)]
    scores = run_query(tmp_path / "study.db", "select score from trials where status = 'paused'")
    assert {row[0] for row in scores.rows} == {None}
    rungs = run_query(
        tmp_path / "study.db", "select distinct round(share, 3) from rungs order by 1"
    )
    assert [row[0] for row in rungs.rows] == [0.111, 0.333]
    study = optuna.load_study(study_name="first", storage=f"sqlite:///{tmp_path}/study.db")
    running = [t for t in study.get_trials() if t.state == optuna.trial.TrialState.RUNNING]
    assert len(running) == len(paused)
    whole = [t for t in study.get_trials() if t.state == optuna.trial.TrialState.COMPLETE]
    assert all(len(t.intermediate_values) == len(AUTO_SHARES) for t in whole)


class Interrupting:
    """Raises what Ctrl-C does, once a trial goes on from a pause."""

    def __init__(self, inner: object) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def submit(self, spec: object) -> None:
        if spec.number > 2 and Path(spec.checkpoint).is_file():  # type: ignore[attr-defined]  # a TrialSpec
            raise KeyboardInterrupt
        self._inner.submit(spec)  # type: ignore[attr-defined]  # a runner


def test_an_interruption_loses_nothing(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    undisturbed = run_loop(SCALING, proposer(), whole, trials=4, seed=SEED, rungs="auto")
    with search_of(SCALING, proposer(), parts, trials=4, seed=SEED, rungs="auto") as state:
        state.runner = Interrupting(state.runner)
        assert search(state) == "interrupted"
        before = {r.number: r.rungs for r in state.ended}
        spec, plan = state.plan.spec, state.plan
        state.store.finish_run(spec.name, "interrupted")
        again = replace(plan, spec=spec)
        state.store.resume_run(spec)
        records = state.store.records(spec.name)
        assert {r.number: r.rungs for r in records if r.outcome is not None} == before
        resumed = type(state)(
            plan=again, store=state.store, mirror=state.mirror, proposer=proposer(),
            runner=state.runner._inner, folder=parts,
        )  # fmt: skip
        resumed.remember(records)
        assert search(resumed) == "done"
        found: Mapping[int, TrialRecord] = resumed.records
    assert [found[n].config for n in sorted(found)] == [r.config for r in undisturbed]
    assert [found[n].rungs for n in sorted(found)] == [r.rungs for r in undisturbed]


def test_checkpoints_of_losers_are_deleted(tmp_path: Path) -> None:
    with search_of(SCALING, tpe(), tmp_path, trials=4, seed=SEED, rungs="auto") as state:
        state.climb.most_waiting = 2
        search(state)
        left = [r for r in state.ended if isinstance(r.outcome, Stopped)]
        kept = {path.parent.name for path in tmp_path.glob("trials/*/paused.pt")}
        waiting = state.climb.waiting(state.records)
    assert left
    assert all("left behind" in r.outcome.summary and r.rungs for r in left)
    assert kept == {str(record.number) for record in waiting}
    assert len(kept) <= 2


def test_a_store_takes_a_paused_trial_back(tmp_path: Path) -> None:
    from tests.studies import KNOBS, METRIC, make_spec

    with Store.open(tmp_path / "study.db") as store:
        store.start_run(make_spec())
        record = TrialRecord(number=0, config=Config({}), started=1.0, limit_bytes=10)
        store.add_trial("first", record, KNOBS)
        rung = Rung(share=1 / 3, step=4, steps=12, scores={METRIC.name: Score(value=0.7)})
        paused = replace(record, outcome=Paused(rungs=(rung,), measurement=peaks(5)))
        store.finish_trial("first", paused, METRIC)
        store.continue_trial("first", 0)
        (going,) = store.records("first")
        assert going.outcome is None
        assert going.paused == paused.outcome
        store.interrupt_trial("first", 0)
        assert store.records("first") == [paused]
        store.continue_trial("first", 0)
        done = replace(
            record,
            outcome=Completed(
                rungs=(rung,), measurement=peaks(5), scores={METRIC.name: Score(value=0.9)}
            ),
        )
        store.finish_trial("first", done, METRIC)
        assert store.records("first") == [done]
