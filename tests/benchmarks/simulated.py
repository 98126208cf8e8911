"""A runner on which made-up trainings take simulated time, and searches on it by the very loop."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from autotune.core.budget import Budget
from autotune.core.config import Config
from autotune.core.context import Device
from autotune.core.outcome import Completed, Outcome, Paused, Rung
from autotune.core.record import TrialRecord
from autotune.core.workload import Workload, WorkloadFacts
from autotune.driver import Search
from autotune.plan import Plan
from autotune.search.sampler import Proposer
from autotune.search.study import StudyMirror
from autotune.storage.store import Store
from autotune.trial.spec import Event, TrialSpec
from autotune.tuner import search
from tests.benchmarks.search_problems import LOSS, Problem
from tests.studies import make_spec


class SimulatedRunner:
    """Trials of a problem, each over after as many simulated seconds as it would take.

    Args:
        problem: Says how trials end.
        seed: Of the noise.
        slots: Most trials at a time.
    """

    trains = False

    def __init__(self, problem: Problem, seed: int, slots: int = 1) -> None:
        self.slots = slots
        self._problem = problem
        self._seed = seed
        self._now = 0.0
        self._order = itertools.count()
        self._due: list[tuple[float, int, Event]] = []

    def describe(self, workload: Workload, cache: Path) -> WorkloadFacts:
        """Return made-up facts."""
        return facts_of(self._problem)

    def submit(self, spec: TrialSpec) -> None:
        """Start a trial."""
        config = Config(spec.config, self._problem.space.knobs)
        outcome = self._problem.train(spec.number, config, self._seed).outcome
        if outcome is None:
            raise ValueError(f"trial {spec.number} of a problem has no outcome")
        if spec.checkpoint:
            outcome = self._part(spec, config, outcome)
        due = self._now + outcome.seconds
        event = Event(trial=spec.number, kind="outcome", data=outcome.to_json(), time=due)
        heapq.heappush(self._due, (due, next(self._order), event))

    def _part(self, spec: TrialSpec, config: Config, outcome: Outcome) -> Outcome:
        """Return how a trial ends that goes on from where it paused, and may pause again."""
        if not isinstance(outcome, Completed):
            return outcome
        path = Path(spec.checkpoint)
        before = float(path.read_text()) if path.is_file() else 0.0
        seconds = outcome.seconds * (spec.until - before)
        if spec.until == 1.0:
            return replace(outcome, seconds=seconds)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(spec.until))
        steps = outcome.measurement.steps
        score = self._problem.at_rung(spec.number, config, self._seed, spec.until)
        rung = Rung(
            share=spec.until,
            step=round(spec.until * steps),
            steps=steps,
            seconds=seconds,
            scores={LOSS.name: score},
        )
        return Paused(seconds=seconds, measurement=outcome.measurement, rungs=(rung,))

    def next(self, timeout: float | None = None) -> Event | None:
        """Move on to the next end of a trial, however long that takes."""
        if not self._due:
            return None
        self._now, _, event = heapq.heappop(self._due)
        return event

    def cancel(self, trial: int, reason: str) -> None:
        """Forget a trial."""
        self._due = [entry for entry in self._due if entry[2].trial != trial]

    def now(self) -> float:
        """Return the simulated time."""
        return self._now

    def close(self) -> None:
        """Forget every trial."""
        self._due.clear()


def facts_of(problem: Problem) -> WorkloadFacts:
    """Return facts that say what is searched for."""
    facts = make_spec().facts
    workload = replace(facts.workload, steps=problem.steps)
    return replace(facts, metrics=(LOSS,), workload=workload)


@contextmanager
def search_of(
    problem: Problem,
    proposer: Proposer,
    folder: Path,
    *,
    trials: int,
    seed: int,
    slots: int = 1,
    rungs: str = "",
) -> Iterator[Search]:
    """Make a search of a problem with everything that a real one has, its database included."""
    device = Device(kind="cpu", total_bytes=2**45)
    spec = replace(
        make_spec(trials=trials),
        facts=facts_of(problem),
        budget_bytes=problem.limit_bytes,
        headroom=0.0,
        device=device.to_json(),
        jobs=slots,
        trial_limit=math.inf,
        rungs=rungs,
    )
    plan = Plan(
        spec=spec,
        space=problem.space,
        context=problem.context,
        budget=Budget(total_bytes=problem.limit_bytes, headroom=0.0),
        devices=(device,) * slots,
        sources={},
    )
    mirror = StudyMirror(f"sqlite:///{folder / 'study.db'}", spec.name, problem.space)
    with Store.open(folder / "study.db") as store:
        store.start_run(spec)
        yield Search(
            plan=plan,
            store=store,
            mirror=mirror,
            proposer=proposer,
            runner=SimulatedRunner(problem, seed, slots),
            folder=folder,
        )
    mirror.close()


def run_loop(
    problem: Problem,
    proposer: Proposer,
    folder: Path,
    *,
    trials: int,
    seed: int,
    slots: int = 1,
    rungs: str = "",
) -> list[TrialRecord]:
    """Return the trials of a search by `autotune.tuner.search`, in order."""
    with search_of(
        problem, proposer, folder, trials=trials, seed=seed, slots=slots, rungs=rungs
    ) as state:
        search(state)
        return state.ended
