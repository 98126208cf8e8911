"""How many trainings each sampler needs: hypervolume inside the budget, beside its peers.

Every sampler searches the made-up problems of `search_problems.py` as `autotune run` would: the
baseline and the smallest configuration first, then what it proposes. With `--loop` it is the very
loop of `autotune run`, database included, on simulated time; the trials are the same.

What counts is the loss without noise of what was trained, as a share of the hypervolume of the best
front there is:

- `trained`: the trainings as they are, which is what a user of a sampler gets;
- `expanded`: each trained accuracy is given for free at the memory of every setting of the exact
  knobs. That is granted to every sampler, and isolates the search from that trick.

Run with `python -m tests.benchmarks.search`; `--json FILE` also writes the numbers.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from optuna.samplers import TPESampler

from autotune.core.config import Config
from autotune.core.pareto import Point, hypervolume
from autotune.core.record import TrialRecord
from autotune.core.units import GIB
from autotune.search.features import Features
from autotune.search.frontier import FrontierProposer
from autotune.search.optuna import OptunaProposer
from autotune.search.sampler import Proposer
from autotune.search.samplers import SAMPLERS as SAMPLER_KINDS
from tests.benchmarks.search_problems import LOSS, PROBLEMS, Problem, peak_bytes
from tests.benchmarks.simulated import run_loop

COUNTS = (10, 25, 50, 100, 200)
"""Trainings after which the hypervolume is taken."""

OPTUNA_DEFAULT = "tpe, Optuna's own"
SAMPLERS = (
    "frontier",
    "frontier, rehearsed",
    OPTUNA_DEFAULT,
    "tpe",
    "nsga2",
    "random",
    "qmc",
    "gp",
)
SLOW = {"gp": 50}
"""Most trials of samplers that need seconds for each proposal."""


@dataclass(slots=True, kw_only=True)
class Search:
    """One search.

    Attributes:
        records: Its trials, in order.
        ask_seconds: CPU seconds of each proposal.
    """

    records: list[TrialRecord] = field(default_factory=list)
    ask_seconds: list[float] = field(default_factory=list)

    @property
    def over(self) -> float:
        """Share of proposals that did not fit the budget."""
        proposed = self.records[2:]
        return sum(not record.feasible for record in proposed) / max(1, len(proposed))


def make_proposer(sampler: str, problem: Problem, seed: int, trials: int = 0) -> Proposer:
    """Return a sampler by the name that tables call it."""
    if sampler.startswith("frontier"):
        rehearsed = sampler.endswith("rehearsed")
        return FrontierProposer(
            problem.space,
            problem.context,
            LOSS,
            seed=seed,
            limit_bytes=problem.limit_bytes,
            trials=trials,
            rehearse=(lambda config: int(peak_bytes(problem.values(config))))
            if rehearsed
            else None,
        )
    own = replace(SAMPLER_KINDS["tpe"], make=lambda seed: TPESampler(seed=seed))
    return OptunaProposer(
        problem.space,
        problem.context,
        LOSS,
        sampler=own if sampler == OPTUNA_DEFAULT else sampler,
        seed=seed,
        limit_bytes=problem.limit_bytes,
    )


def run_loop_search(problem: Problem, proposer: Proposer, trials: int, *, seed: int) -> Search:
    """Search by the loop of `autotune run`."""
    timed = _Timed(proposer)
    with tempfile.TemporaryDirectory() as folder:
        records = run_loop(problem, timed, Path(folder), trials=trials, seed=seed)
    return Search(records=records, ask_seconds=timed.seconds)


class _Timed:
    """A proposer whose proposals are timed."""

    def __init__(self, proposer: Proposer) -> None:
        self._proposer = proposer
        self.seconds: list[float] = []
        self.note = ""
        self.tell = proposer.tell
        self.remaining = proposer.remaining

    def ask(self, number: int) -> Config | None:
        """Ask, and note how long it took in CPU seconds."""
        began = time.process_time()
        config = self._proposer.ask(number)
        self.seconds.append(time.process_time() - began)
        return config


def run_search(
    problem: Problem, proposer: Proposer, trials: int, *, seed: int, slots: int = 1
) -> Search:
    """Search as the driver does, with `slots` trials side by side that end in order."""
    search, running = Search(), list[TrialRecord]()
    opening = [problem.space.baseline(), problem.space.smallest(problem.context)]
    for number in range(trials):
        began = time.process_time()
        config = opening[number] if number < len(opening) else proposer.ask(number)
        if number >= len(opening):
            search.ask_seconds.append(time.process_time() - began)
        if config is None:
            break
        proposer.tell(TrialRecord(number=number, config=config))
        running.append(problem.train(number, config, seed))
        if len(running) == slots:
            search.records.append(running.pop(0))
            proposer.tell(search.records[-1])
    search.records.extend(running)
    return search


def trained_points(problem: Problem, configs: Iterable[Config]) -> list[Point]:
    """Return loss and GiB of the configurations that fit."""
    points = [problem.true_point(config) for config in configs]
    return [point for point in points if point[1] * GIB <= problem.limit_bytes]


def expanded_points(problem: Problem, configs: Iterable[Config]) -> list[Point]:
    """Return loss and GiB of the configurations with every setting of the exact knobs."""
    found: list[Point] = []
    for config in configs:
        points = trained_points(problem, problem.expansions(config))
        if problem.shared:
            points = [min(points, key=lambda point: point[1])] if points else []
        found.extend(points)
    return found


def share(problem: Problem, points: Sequence[Point]) -> float:
    """Return the hypervolume of points as a share of the best there is."""
    reference = (problem.worst_loss, problem.limit_bytes / GIB)
    return hypervolume(points, reference) / problem.ideal


def shares(
    problem: Problem,
    search: Search,
    points_of: Callable[[Problem, Iterable[Config]], list[Point]],
    counts: Sequence[int] = COUNTS,
) -> dict[int, float]:
    """Return the share after each number of trainings that was reached."""
    points = [points_of(problem, [record.config]) for record in search.records]
    reached = [count for count in counts if count <= len(points)]
    return {n: share(problem, [p for some in points[:n] for p in some]) for n in reached}


def find_ideal(problem: Problem, rounds: int = 300, seed: int = 0) -> float:
    """Return the hypervolume of the best front, by a long search without noise."""
    features, rng = Features(problem.space), np.random.default_rng(seed)
    front: list[tuple[Point, np.ndarray]] = []
    for _ in range(rounds):
        codes = features.draw(rng, 100)
        if front:
            parents = np.stack([front[i][1] for i in rng.integers(len(front), size=150)])
            changes = 1.0 + 2.0 * rng.random()
            codes = np.vstack(
                [codes[:20], features.changed(rng, parents, features.everything, changes)]
            )
        for row in codes:
            config = features.config(row)
            if problem.space.legal(config, problem.context):
                points = trained_points(problem, [config])
                front.extend((point, row) for point in points)
        front.sort(key=lambda entry: (entry[0][1], entry[0][0]))
        kept, least = [], problem.worst_loss
        for point, row in front:
            if point[0] < least:
                least = point[0]
                kept.append((point, row))
        front = kept
    reference = (problem.worst_loss, problem.limit_bytes / GIB)
    return hypervolume([point for point, _ in front], reference)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What one sampler reached on one problem, over seeds."""

    problem: str
    sampler: str
    seeds: int
    trained: dict[int, tuple[float, float]]
    expanded: dict[int, tuple[float, float]]
    over: float
    ask_seconds: float


def measure(
    problem: Problem,
    sampler: str,
    seeds: Sequence[int],
    trials: int,
    *,
    slots: int = 1,
    loop: bool = False,
) -> Row:
    """Return a row of the table."""
    trials = min(trials, SLOW.get(sampler, trials))
    searches = []
    for seed in seeds:
        proposer = make_proposer(sampler, problem, seed)
        searches.append(
            run_loop_search(problem, proposer, trials, seed=seed)
            if loop
            else run_search(problem, proposer, trials, seed=seed, slots=slots)
        )
    asks = [seconds for search in searches for seconds in search.ask_seconds]
    return Row(
        problem=problem.name,
        sampler=sampler,
        seeds=len(seeds),
        trained=_summed([shares(problem, s, trained_points) for s in searches]),
        expanded=_summed([shares(problem, s, expanded_points) for s in searches]),
        over=statistics.mean(search.over for search in searches),
        ask_seconds=statistics.median(asks),
    )


def main() -> None:
    """Measure, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=100)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--slots", type=int, default=1, help="trials side by side")
    parser.add_argument("--loop", action="store_true", help="by the loop of `autotune run` itself")
    parser.add_argument("--samplers", nargs="+", default=SAMPLERS, choices=SAMPLERS)
    parser.add_argument("--problems", nargs="+", default=list(PROBLEMS), choices=list(PROBLEMS))
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--ideal", action="store_true", help="find the best fronts anew, and stop")
    arguments = parser.parse_args()
    if arguments.ideal:
        for name in arguments.problems:
            print(name, find_ideal(PROBLEMS[name]))
        return
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    rows = []
    print(_header())
    for name in arguments.problems:
        for sampler in arguments.samplers:
            few = seeds[:3] if sampler in SLOW else seeds
            rows.append(
                measure(
                    PROBLEMS[name],
                    sampler,
                    few,
                    arguments.trials,
                    slots=arguments.slots,
                    loop=arguments.loop,
                )
            )
            print(_line(rows[-1]), flush=True)
            if arguments.json:
                arguments.json.write_text(json.dumps([_plain(row) for row in rows], indent=1))


def _summed(found: Sequence[dict[int, float]]) -> dict[int, tuple[float, float]]:
    """Return mean and standard error by count."""
    result = {}
    for count in found[0]:
        values = [each[count] for each in found if count in each]
        error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
        result[count] = statistics.mean(values), error
    return result


def _header() -> str:
    columns = "".join(f"{f'trained {n}':>15}" for n in COUNTS)
    columns += "".join(f"{f'expanded {n}':>15}" for n in COUNTS)
    return f"{'problem':<10}{'sampler':<21}{'seeds':>5}{columns}{'over':>7}{'ask s':>8}"


def _line(row: Row) -> str:
    cells = ""
    for part in (row.trained, row.expanded):
        for count in COUNTS:
            mean, error = part.get(count, (None, None))
            cells += f"{'-' if mean is None else f'{mean:.3f}±{error:.3f}':>15}"
    head = f"{row.problem:<10}{row.sampler:<21}{row.seeds:>5}"
    return f"{head}{cells}{row.over:>7.1%}{row.ask_seconds:>8.3f}"


def _plain(row: Row) -> dict[str, object]:
    return {name: getattr(row, name) for name in Row.__dataclass_fields__}


if __name__ == "__main__":
    main()
