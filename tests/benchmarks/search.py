"""How many trainings each sampler needs: hypervolume inside the budget, beside its peers.

Every sampler searches the problems of `search_problems.py`, and the table of real trainings of
`search_table.py`, as `autotune run` would: the baseline and the smallest configuration first, then
what it proposes. With `--loop`, and wherever there are rungs, it is the very loop of `autotune
run`, database included, on simulated time; the trials are the same.

What counts is the loss without noise of what was trained to its end, as a share of the hypervolume
of the best front there is, by cost in full trainings; a trial that ran out of memory was one, too,
and with rungs one that stands at 1/9 has cost a ninth.

- `trained`: the trainings as they are, which is what a user of a sampler gets;
- `expanded`: each trained accuracy is given for free at the memory of every setting of the exact
  knobs. That is granted to every sampler, and isolates the search from that trick.

    python -m tests.benchmarks.search --seeds 10 --first-seed 100 --trials 200 --processes 2 \\
        --json results/reference/search.json

The searches are shared among processes and do not depend on how many there are. Slow samplers get
fewer trainings or seeds, as their rows say; what is not installed is named. Searches that are done
are kept beside the file until all are, so that a recording that was ended goes on.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from optuna.samplers import TPESampler

from autotune.core.outcome import Completed
from autotune.core.pareto import Point, hypervolume
from autotune.core.record import TrialRecord
from autotune.core.units import GIB
from autotune.runners.devices import library_versions
from autotune.search.deadline import Deadline
from autotune.search.features import Features
from autotune.search.frontier import FrontierProposer
from autotune.search.optuna import OptunaProposer
from autotune.search.rehearsals import Rehearsals
from autotune.search.rungs import Rungs
from autotune.search.sampler import Proposer
from autotune.search.samplers import SAMPLERS as SAMPLER_KINDS
from autotune.search.thaw import RungDeadline, ThawProposer
from tests.benchmarks.search_peers import BOTORCH, MO_ASHA, BotorchProposer, missing, run_mo_asha
from tests.benchmarks.search_problems import LOSS, PROBLEMS, Problem
from tests.benchmarks.search_runs import (
    COUNTS,
    Search,
    Trainings,
    expanded_points,
    run_loop_search,
    run_search,
    shares,
    trained_points,
)
from tests.benchmarks.search_table import TABLE, TableProblem
from tests.benchmarks.search_verdict import OURS, Curve, Row, verdict

OPTUNA_SHIPPED, OPTUNA_DEFAULT = "tpe", "tpe, constraints"
REHEARSED, RUNGS = "frontier, rehearsed", "frontier, rungs"
SAMPLERS = (
    "random",
    "qmc",
    OPTUNA_SHIPPED,
    OPTUNA_DEFAULT,
    "tpe, multivariate",
    "nsga2",
    "gp",
    BOTORCH,
    MO_ASHA,
    "frontier",
    REHEARSED,
    RUNGS,
)
"""`tpe` is Optuna's as shipped: a trial that ran out of memory is one that failed. With constraints
its memory is told; `tpe, multivariate` is autotune's `--sampler tpe`, with constraints, too."""

LIMITS: Mapping[str, tuple[int, int]] = {
    "gp": (3, 50),
    BOTORCH: (3, 50),
    RUNGS: (10, 40),
    REHEARSED: (10, 100),
}
"""Most seeds and trainings of the slowest samplers."""

GRID = (*range(1, 61), *range(65, 201, 5))
"""Costs at which the hypervolume of our samplers is recorded; of peers, at those of the table."""

_ATTEMPTS = 4
"""Draws of Optuna's own TPE before a neighbour of the last one is tried; it repeats itself."""

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
TABLE_NAME = "table"


class _Forgetful(OptunaProposer):
    """An `OptunaProposer` whose sampler never hears of trials that failed."""

    def _learn(self, record: TrialRecord) -> None:
        if isinstance(record.outcome, Completed):
            super()._learn(record)


def make_proposer(sampler: str, problem: Trainings, seed: int, trials: int = 0) -> Proposer:
    """Return a sampler by the name that tables call it."""
    if sampler == BOTORCH:
        return BotorchProposer(problem, seed)
    task = (problem.space, problem.context, LOSS)
    common: dict[str, Any] = {"seed": seed, "limit_bytes": problem.limit_bytes}
    if sampler == RUNGS:
        rungs = Rungs.of(problem.rungs, problem.steps)
        return ThawProposer(*task, **common, deadline=RungDeadline(), rungs=rungs)
    if sampler.startswith("frontier"):
        rehearsals = Rehearsals(problem.peak) if sampler == REHEARSED else None
        return FrontierProposer(*task, **common, deadline=Deadline(trials), rehearsals=rehearsals)
    if sampler in (OPTUNA_SHIPPED, OPTUNA_DEFAULT):
        own = replace(
            SAMPLER_KINDS["tpe"], make=lambda seed: TPESampler(seed=seed), attempts=_ATTEMPTS
        )
        kind = _Forgetful if sampler == OPTUNA_SHIPPED else OptunaProposer
        return kind(*task, **common, sampler=own)
    return OptunaProposer(*task, **common, sampler=sampler.split(",", maxsplit=1)[0])


@cache
def problem_of(name: str) -> Trainings:
    """Return a problem by name; the table is read once in a process."""
    return TableProblem.read() if name == TABLE_NAME else PROBLEMS[name]


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
class Unit:
    """One search that a process is given."""

    problem: str
    sampler: str
    seed: int
    trials: int
    slots: int = 1
    loop: bool = False

    def search(self) -> Search:
        """Search."""
        problem, seed, trials = problem_of(self.problem), self.seed, self.trials
        if self.sampler == MO_ASHA:
            return run_mo_asha(problem, trials, seed=seed)
        proposer = make_proposer(self.sampler, problem, seed)
        if self.sampler == RUNGS or self.loop:
            rungs = problem.rungs if self.sampler == RUNGS else ""
            return run_loop_search(problem, proposer, trials, seed=seed, rungs=rungs)
        return run_search(problem, proposer, trials, seed=seed, slots=self.slots)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What one search came to; see `search_verdict.Row`."""

    trained: dict[int, float]
    expanded: dict[int, float]
    over: float
    ask_seconds: float
    cpu_seconds: float


def measure(unit: Unit) -> Found:
    """Search, and return what it came to."""
    began = time.process_time()
    search, problem = unit.search(), problem_of(unit.problem)
    seconds = time.process_time() - began
    costs = GRID if unit.sampler.startswith(OURS) else COUNTS
    grid = sorted({unit.trials, *(count for count in costs if count <= unit.trials)})
    return Found(
        trained=shares(problem, search, trained_points, grid),
        expanded=shares(problem, search, expanded_points, grid),
        over=search.over,
        ask_seconds=statistics.median(search.ask_seconds or [0.0]),
        cpu_seconds=seconds,
    )


def measure_all(
    units: Sequence[Unit], processes: int, parts: Path | None = None
) -> dict[Unit, Found]:
    """Return what every search came to, those of slow samplers begun first.

    Args:
        units: The searches.
        processes: How many are run side by side.
        parts: Keeps those that are done, one a line; what it holds is not searched again.
    """
    found = _kept(parts) if parts is not None else {}
    # One thread each, said before numpy is imported there: no search runs in this process.
    alone = patch.dict(os.environ, dict.fromkeys(THREADS, "1"))
    spawn = multiprocessing.get_context("spawn")
    with alone, ProcessPoolExecutor(processes, mp_context=spawn) as pool:
        left = [unit for unit in units if unit not in found]
        first = sorted(left, key=lambda unit: (unit.sampler not in LIMITS, -unit.trials))
        futures = {pool.submit(measure, unit): unit for unit in first}
        for future in as_completed(futures):
            unit = futures[future]
            found[unit] = future.result()
            if parts is not None:
                with parts.open("a") as file:
                    file.write(json.dumps([asdict(unit), asdict(found[unit])]) + "\n")
            print(
                f"{len(found)}/{len(units)} {unit.problem}, {unit.sampler}, seed {unit.seed}: "
                f"{found[unit].cpu_seconds:.0f} s",
                file=sys.stderr,
                flush=True,
            )
    return {unit: found[unit] for unit in units}


def _kept(parts: Path) -> dict[Unit, Found]:
    """Return the searches that a recording that was ended had done."""
    found: dict[Unit, Found] = {}
    for line in parts.read_text().splitlines() if parts.is_file() else ():
        unit, came = json.loads(line)
        curves = {k: {int(n): at for n, at in came[k].items()} for k in ("trained", "expanded")}
        found[Unit(**unit)] = Found(**{**came, **curves})
    return found


def rows_of(found: Mapping[Unit, Found]) -> list[Row]:
    """Return the rows of the table."""
    groups: dict[tuple[str, str], list[Found]] = {}
    for unit, one in found.items():
        groups.setdefault((unit.problem, unit.sampler), []).append(one)
    return [
        Row(
            problem=problem,
            shared=problem_of(problem).shared,
            sampler=sampler,
            seeds=len(some),
            trained=_summed([one.trained for one in some]),
            expanded=_summed([one.expanded for one in some]),
            over=statistics.mean(one.over for one in some),
            ask_seconds=statistics.median(one.ask_seconds for one in some),
            cpu_seconds=sum(one.cpu_seconds for one in some),
        )
        for (problem, sampler), some in groups.items()
    ]


def plan_units(asked: argparse.Namespace) -> tuple[list[Unit], list[str]]:
    """Return the searches, and why some are left out."""
    notes = [note for sampler in asked.samplers if (note := missing(sampler))]
    samplers = [sampler for sampler in asked.samplers if not missing(sampler)]
    units: list[Unit] = []
    for name in asked.problems:
        if name == TABLE_NAME and not TABLE.is_file():
            notes.append("table is left out: no table of real trainings is recorded")
            continue
        known = samplers
        if not problem_of(name).rungs:
            known = [sampler for sampler in samplers if sampler not in (MO_ASHA, RUNGS)]
            notes.append(f"{MO_ASHA} and {RUNGS} are left out on {name}: it holds no curves")
        for sampler in known:
            seeds, trials = LIMITS.get(sampler, (asked.seeds, asked.trials))
            units += [
                Unit(
                    problem=name,
                    sampler=sampler,
                    seed=asked.first_seed + index,
                    trials=min(trials, asked.trials),
                    slots=asked.slots,
                    loop=asked.loop,
                )
                for index in range(min(seeds, asked.seeds))
            ]
    return units, notes


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print one table and what it comes to."""
    problems = (*PROBLEMS, TABLE_NAME)
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=100)
    parser.add_argument("--trials", type=int, default=100, help="full trainings")
    parser.add_argument("--slots", type=int, default=1, help="trials side by side")
    parser.add_argument("--loop", action="store_true", help="by the loop of `autotune run` itself")
    parser.add_argument("--processes", type=int, default=1, help="searches side by side")
    parser.add_argument("--samplers", nargs="+", default=SAMPLERS, choices=SAMPLERS)
    parser.add_argument("--problems", nargs="+", default=problems, choices=problems)
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--ideal", action="store_true", help="find the best fronts anew, and stop")
    asked = parser.parse_args(arguments)
    if asked.ideal:
        for problem in PROBLEMS.values():
            print(problem.name, find_ideal(problem))
        return
    units, notes = plan_units(asked)
    parts = asked.json.with_suffix(".parts") if asked.json else None
    rows = rows_of(measure_all(units, asked.processes, parts))
    lines = verdict(rows)
    print("\n".join([_header(), *map(_line, rows), *notes, "", *lines]))
    if asked.json:
        head = {
            "benchmark": "search",
            "trials": asked.trials,
            "first_seed": asked.first_seed,
            "versions": library_versions(),
            "notes": notes,
            "verdict": lines,
        }
        asked.json.write_text(_document(head, rows))
    if parts is not None:
        parts.unlink(missing_ok=True)


def _summed(found: Sequence[dict[int, float]]) -> Curve:
    """Return mean and standard error by cost, as far as every search got."""
    result = {}
    for count in sorted(set.intersection(*(set(each) for each in found))):
        values = [each[count] for each in found]
        error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
        result[count] = round(statistics.mean(values), 4), round(error, 4)
    return result


def _header() -> str:
    columns = "".join(f"{f'trained {n}':>15}" for n in COUNTS)
    columns += "".join(f"{f'expanded {n}':>15}" for n in COUNTS)
    return f"{'problem':<10}{'sampler':<21}{'seeds':>5}{columns}{'over':>7}{'ask s':>8}{'cpu s':>7}"


def _line(row: Row) -> str:
    cells = ""
    for part in (row.trained, row.expanded):
        for count in COUNTS:
            mean, error = part.get(count, (None, None))
            cells += f"{'-' if mean is None else f'{mean:.3f}±{error:.3f}':>15}"
    head = f"{row.problem:<10}{row.sampler:<21}{row.seeds:>5}"
    return f"{head}{cells}{row.over:>7.1%}{row.ask_seconds:>8.3f}{row.cpu_seconds:>7.0f}"


def _document(head: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """Return JSON with a line for each row."""
    lines = ",\n".join(json.dumps(asdict(row), separators=(",", ":")) for row in rows)
    return json.dumps(head, indent=1)[:-2] + f',\n "rows": [\n{lines}\n]}}\n'


if __name__ == "__main__":
    main()
