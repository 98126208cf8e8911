"""Searches of the benchmark, and the hypervolume that each reached by its cost in full trainings.

What counts is the loss without noise of what was trained to its end, as a share of the hypervolume
of the best front there is. A trial that is never paused costs one training, however it ends: one
that ran out of memory was a trial, too. A trial that pauses at rungs costs the share of the
training that it has done, and one that fails costs the part in which it did.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from autotune.core.config import Config
from autotune.core.context import Context
from autotune.core.outcome import Completed, OutOfMemory, Score
from autotune.core.pareto import Point, front_indices, hypervolume
from autotune.core.record import TrialRecord
from autotune.core.space import Space
from autotune.core.units import GIB
from autotune.search.rungs import Rungs
from autotune.search.sampler import Proposer
from tests.benchmarks.simulated import run_loop

COUNTS = (10, 25, 50, 100, 200)
"""Costs in full trainings at which tables show the hypervolume."""

OPENING = 2
"""Trials that no sampler proposes: the baseline and the smallest configuration."""

_ROUNDING = 1e-6


class Trainings(Protocol):
    """What is searched: `search_problems.Problem`, or a table of real trainings."""

    name: str
    shared: bool
    limit_bytes: int
    worst_loss: float
    ideal: float
    space: Space
    context: Context
    rungs: str
    steps: int

    def true_point(self, config: Config) -> Point:
        """Return loss without noise, infinite if training fails, and peak in GiB."""

    def expanded(self, config: Config) -> list[Point]:
        """Return the points that fit of the configuration with every setting of exact knobs."""

    def peak(self, config: Config) -> int:
        """Return the peak in bytes."""

    def train(self, number: int, config: Config, seed: int) -> TrialRecord:
        """Return the record of a trial."""

    def at_rung(self, number: int, config: Config, seed: int, share: float) -> Score:
        """Return what a trial scores after a share of its training."""


@dataclass(slots=True, kw_only=True)
class Search:
    """One search.

    Attributes:
        records: Its trials, in order.
        ask_seconds: CPU seconds of each proposal.
        ends: What was trained to its end, or as far as it got, and what the search had cost then.
        cost: What the search cost altogether.
    """

    records: list[TrialRecord] = field(default_factory=list)
    ask_seconds: list[float] = field(default_factory=list)
    ends: list[tuple[float, Config]] = field(default_factory=list)
    cost: float = 0.0

    @property
    def over(self) -> float:
        """Share of proposals that did not fit the budget."""
        proposed = self.records[OPENING:]
        failed = sum(isinstance(record.outcome, OutOfMemory) for record in proposed)
        return failed / max(1, len(proposed))

    def spent(self, cost: float, config: Config | None = None) -> None:
        """Note a cost, and what it brought to its end."""
        self.cost += cost
        if config is not None:
            self.ends.append((self.cost, config))


def opening_of(problem: Trainings) -> list[Config]:
    """Return what every run trains first."""
    return [problem.space.baseline(), problem.space.smallest(problem.context)]


def run_search(
    problem: Trainings, proposer: Proposer, trials: int, *, seed: int, slots: int = 1
) -> Search:
    """Search as the driver does, with `slots` trials side by side that end in order."""
    search, running = Search(), list[TrialRecord]()
    opening = opening_of(problem)
    for number in range(trials):
        began = time.process_time()
        config = opening[number] if number < OPENING else proposer.ask(number)
        if number >= OPENING:
            search.ask_seconds.append(time.process_time() - began)
        if config is None:
            break
        proposer.tell(TrialRecord(number=number, config=config))
        running.append(problem.train(number, config, seed))
        if len(running) == slots:
            search.records.append(running.pop(0))
            proposer.tell(search.records[-1])
    search.records.extend(running)
    for record in search.records:
        search.spent(1.0, record.config)
    return search


def run_loop_search(
    problem: Trainings, proposer: Proposer, trials: int, *, seed: int, rungs: str = ""
) -> Search:
    """Search by the loop of `autotune run`, with rungs or without."""
    search, counted = Search(), Rungs.of(rungs, problem.steps)
    costs: dict[int, float] = {}
    tell = proposer.tell

    def note(record: TrialRecord) -> None:
        tell(record)
        if record.outcome is None or record.refused:
            return
        cost = counted.cost(record, {})
        whole = record.config if isinstance(record.outcome, Completed) else None
        search.spent(cost - costs.get(record.number, 0.0), whole)
        costs[record.number] = cost

    proposer.tell = note  # type: ignore[method-assign]  # what is told is all that has to be known
    _time(proposer, search.ask_seconds)
    with tempfile.TemporaryDirectory() as folder:
        search.records = run_loop(
            problem, proposer, Path(folder), trials=trials, seed=seed, rungs=rungs
        )
    return search


def _time(proposer: Any, seconds: list[float]) -> None:
    """Note CPU seconds of each decision: whether to go on with a trial, or which one to start."""
    ask, choose = proposer.ask, getattr(proposer, "choose", None)
    weighed: list[float] = []

    def timed_ask(number: int) -> Config | None:
        began = time.process_time()
        config: Config | None = ask(number)
        seconds.append(sum(weighed) + time.process_time() - began)
        weighed.clear()
        return config

    def timed_choose(*asked: Any, **more: Any) -> TrialRecord | None:
        began = time.process_time()
        found: TrialRecord | None = choose(*asked, **more)
        weighed.append(time.process_time() - began)
        if found is not None:
            seconds.append(weighed.pop())
        return found

    proposer.ask = timed_ask
    if choose is not None:
        proposer.choose = timed_choose


def trained_points(problem: Trainings, configs: Iterable[Config]) -> list[Point]:
    """Return loss and GiB of the configurations that fit."""
    points = [problem.true_point(config) for config in configs]
    fits = problem.limit_bytes / GIB
    return [point for point in points if point[1] <= fits and math.isfinite(point[0])]


def expanded_points(problem: Trainings, configs: Iterable[Config]) -> list[Point]:
    """Return loss and GiB of the configurations with every setting of the exact knobs."""
    return [point for config in configs for point in problem.expanded(config)]


def share(problem: Trainings, points: Sequence[Point]) -> float:
    """Return the hypervolume of points as a share of the best there is."""
    reference = (problem.worst_loss, problem.limit_bytes / GIB)
    return hypervolume(points, reference) / problem.ideal


def shares(
    problem: Trainings,
    search: Search,
    points_of: Callable[[Trainings, Iterable[Config]], list[Point]],
    counts: Sequence[int] = COUNTS,
) -> dict[int, float]:
    """Return the share at each cost in full trainings that was reached, costs ascending."""
    found, front, used = dict[int, float](), list[Point](), 0
    for count in counts:
        if count > search.cost + _ROUNDING:
            break
        while used < len(search.ends) and search.ends[used][0] <= count + _ROUNDING:
            front += points_of(problem, [search.ends[used][1]])
            used += 1
        front = [front[index] for index in front_indices(front)]
        found[count] = share(problem, front)
    return found
