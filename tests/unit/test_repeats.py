"""Repeats after a search, over a replay: recorded, resumed, stopped, and never done twice."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from autotune.core.observer import Silent
from autotune.core.outcome import Completed, Crashed, Outcome, Score
from autotune.core.record import TrialRecord
from autotune.core.seeds import Repetition
from autotune.core.workload import Metric
from autotune.driver import Search
from autotune.knobs import BUILTIN
from autotune.plan import plan_again
from autotune.runners.replay import ReplayRunner
from autotune.search.optuna import OptunaProposer
from autotune.search.study import StudyMirror
from autotune.seeds import repeat_near_front
from autotune.storage.run import Run
from autotune.storage.store import Store
from autotune.trial.spec import Event
from tests.recorded import REFERENCE, RUN

Ends = Mapping[tuple[int, int], Outcome]


class Told(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.fronts: list[list[int]] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def trial_repeated(self, record: TrialRecord, front: list[TrialRecord]) -> None:
        self.fronts.append([member.number for member in front])


class Seeing(ReplayRunner):
    """Remembers which seeds were asked for, and may be interrupted after some outcomes."""

    def __init__(self, run: Run, records: list[TrialRecord], patience: int = 10**6) -> None:
        super().__init__(run.spec.facts, records, slots=2)
        self.asked: list[tuple[int, int]] = []
        self.patience = patience

    def submit(self, spec):  # type: ignore[no-untyped-def] # as in the base
        self.asked.append((spec.number, spec.facts.workload.seed))
        assert spec.log.endswith(f"/{spec.number}/seed-{spec.facts.workload.seed}.txt")
        super().submit(spec)

    def next(self, timeout: float | None = None) -> Event | None:
        event = super().next(timeout)
        if event is not None and event.kind == "outcome":
            self.patience -= 1
            if self.patience < 0:
                raise KeyboardInterrupt
        return event


class Unmirrored(StudyMirror):
    """Writes nothing: what it mirrors was mirrored when the search ended."""

    def __init__(self) -> None:
        pass

    def tell(self, record: TrialRecord, metric: Metric) -> None:
        pass


@pytest.fixture(scope="module")
def run() -> Run:
    """The smallest half of the reference run, and of its front."""
    found = Run.open(RUN, results=REFERENCE)
    return replace(found, records=found.records[:12])


@pytest.fixture(scope="module")
def ended(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database in which that search has ended."""
    path = tmp_path_factory.mktemp("ended") / "study.db"
    with Store.open(path) as store:
        store.start_run(run.spec)
        for record in run.records:
            store.add_trial(RUN, replace(record, outcome=None), BUILTIN)
            store.finish_trial(RUN, record, run.metric)
        store.finish_run(RUN, "done")
    return path


@pytest.fixture
def folder(ended: Path, tmp_path: Path) -> Path:
    shutil.copy(ended, tmp_path)
    return tmp_path


def recording(run: Run, *, seeds: int = 3, **ends: Outcome) -> list[TrialRecord]:
    """The reference run as if its trials had been recorded with further seeds, some worse."""
    first, found = run.spec.facts.workload.seed, []
    for record in run.records:
        repeats = []
        if isinstance(record.outcome, Completed):
            worse = {
                name: replace(score, value=score.value - 0.01 * (record.number % 3))
                for name, score in record.outcome.scores.items()
            }
            for further in range(1, seeds + 1):
                end = ends.get(f"_{record.number}") or replace(record.outcome, scores=worse)
                repeats.append(Repetition(seed=first + further, started=0.0, outcome=end))
        found.append(replace(record, repeats=tuple(repeats)))
    return found


def make_search(run: Run, folder: Path, runner: ReplayRunner, repeats: str, told: Told) -> Search:
    """A search that has ended, and is resumed for its repeats."""
    plan = plan_again(replace(run.spec, repeats=repeats))
    store = Store.open(folder / "study.db", clock=runner.now)
    store.resume_run(plan.spec)
    state = Search(
        plan=plan,
        store=store,
        mirror=Unmirrored(),
        proposer=OptunaProposer(
            plan.space,
            plan.context,
            plan.spec.facts.metric,
            limit_bytes=plan.budget.limit_bytes,
        ),
        runner=runner,
        folder=folder,
        observers=[told],
    )
    state.remember(store.records(RUN))
    return state


def test_the_front_is_repeated_and_recorded(run: Run, folder: Path) -> None:
    told, runner = Told(), Seeing(run, recording(run))
    state = make_search(run, folder, runner, "2", told)
    assert repeat_near_front(state, None) == "done"
    kept = {record.number: record for record in state.store.records(RUN)}
    assert {n: r.repeats for n, r in kept.items()} == {
        n: r.repeats for n, r in state.records.items()
    }
    assert all(record.seeds == 3 for record in state.front)
    assert len(runner.asked) == len(set(runner.asked)) == sum(len(r.repeats) for r in kept.values())
    assert {seed - run.spec.facts.workload.seed for _, seed in runner.asked} == {1, 2}
    assert [r.number for r in kept.values() if r.on_front] == sorted(
        record.number for record in state.front
    )
    assert all(kept[r.number].outcome == r.outcome for r in run.records)
    assert len(told.fronts) == len(runner.asked)
    assert told.fronts[-1] == [record.number for record in state.front]
    assert "further seeds" in told.notes[-1]
    assert state.seconds_before > sum(r.outcome.seconds for r in run.records if r.outcome)


def test_interrupted_repeats_go_on_and_none_is_done_twice(
    run: Run, folder: Path, ended: Path
) -> None:
    whole = make_search(run, folder, Seeing(run, recording(run)), "2", Told())
    parts = folder / "parts"
    parts.mkdir()
    shutil.copy(ended, parts)
    assert repeat_near_front(whole, None) == "done"
    asked: list[tuple[int, int]] = []
    status = "interrupted"
    for _ in range(20):
        runner = Seeing(run, recording(run), patience=3)
        part = make_search(run, parts, runner, "2", Told())
        done = {(r.number, a.seed) for r in part.records.values() for a in r.repeats}
        status = repeat_near_front(part, None)
        assert not done & set(runner.asked)
        asked += runner.asked
        if status == "done":
            break
    assert status == "done"
    ends = {n: {a.seed: a.outcome for a in r.repeats} for n, r in part.records.items()}
    assert ends == {n: {a.seed: a.outcome for a in r.repeats} for n, r in whole.records.items()}


def test_a_repeat_that_fails_is_kept_and_not_averaged(run: Run, folder: Path) -> None:
    number = run.front()[-1].number
    crash = Crashed(error="ValueError: no")
    told = Told()
    runner = Seeing(run, recording(run, **{f"_{number}": crash}))
    state = make_search(run, folder, runner, "1", told)
    assert repeat_near_front(state, None) == "done"
    record = state.store.records(RUN)[number]
    assert [again.outcome for again in record.repeats] == [crash]
    assert record.score(run.metric) == record.first_score(run.metric)
    said = f"trial {number} again, with seed 1: crashed: ValueError: no"
    assert any(said in note for note in told.notes)
    assert "of which 1 did not complete" in told.notes[-1]


def test_a_recording_without_further_seeds_says_so(run: Run, folder: Path) -> None:
    told, runner = Told(), Seeing(run, list(run.records))
    state = make_search(run, folder, runner, "1", told)
    assert repeat_near_front(state, None) == "done"
    assert runner.asked == []
    assert "the recording has no further seeds" in told.notes[-1]


def test_no_time_means_no_repeats(run: Run, folder: Path) -> None:
    told, runner = Told(), Seeing(run, recording(run))
    state = make_search(run, folder, runner, "1", told)
    assert repeat_near_front(state, runner.now()) == "done"
    assert runner.asked == []
    assert "the time is used up" in told.notes[-1]


def test_repeats_end_when_somebody_asks_for_it(run: Run, folder: Path) -> None:
    told, runner = Told(), Seeing(run, recording(run))
    state = make_search(run, folder, runner, "1", told)
    state.store.request_stop(RUN, "ada@desk")
    assert repeat_near_front(state, None) == "interrupted"
    assert runner.asked == []
    assert not any(record.repeats for record in state.store.records(RUN))


def test_other_data_is_no_repeat(run: Run, folder: Path) -> None:
    told = Told()
    facts = replace(run.spec.facts, data_fingerprint="other")
    runner = Seeing(replace(run, spec=replace(run.spec, facts=facts)), recording(run))
    state = make_search(run, folder, runner, "1", told)
    assert repeat_near_front(state, None) == "done"
    assert runner.asked == []
    assert "the data is not what it was" in told.notes[-1]


def test_a_replay_knows_the_seeds_that_were_recorded(run: Run) -> None:
    record = run.front()[0]
    first = run.spec.facts.workload.seed
    again = Repetition(seed=first + 1, started=0.0, outcome=Completed(scores={"x": Score(value=1)}))
    runner = ReplayRunner(run.spec.facts, [replace(record, repeats=(again,))])
    assert runner.knows_seed(record.config, first + 1)
    assert not runner.knows_seed(record.config, first + 2)
