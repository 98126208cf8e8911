"""The search benchmark: its table of real trainings, its peers' encoding, and its verdict."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from argparse import Namespace
from itertools import product

import pytest

from autotune.core.config import Config
from autotune.core.errors import BadValue
from autotune.core.outcome import Completed, Diverged, OutOfMemory
from autotune.core.units import GIB, MIB
from autotune.search.encoding import Encoding
from tests.benchmarks import search_peers
from tests.benchmarks.search import (
    OPTUNA_SHIPPED,
    RUNGS,
    Unit,
    make_proposer,
    measure,
    measure_all,
    plan_units,
)
from tests.benchmarks.search_peers import BOTORCH, MO_ASHA, Cube
from tests.benchmarks.search_problems import LOSS, SCALING, VIOLATED
from tests.benchmarks.search_runs import (
    Search,
    expanded_points,
    run_loop_search,
    run_search,
    share,
    shares,
    trained_points,
)
from tests.benchmarks.search_table import TABLE, TableProblem
from tests.benchmarks.search_verdict import Row, verdict

STEPS = 40
PRUNE, RATES, OPTIMIZERS = (0.0, 0.25, 0.5), (0.3, 1.0, 3.0), ("adamw", "lion")
EXACT = (("none", 1.0), ("every_other", 0.8), ("full", 0.6))
MISSING, FAILED = (0.5, 3.0, "lion"), (0.0, 3.0, "lion")


def made_up_row(prune, rate, optimizer):
    score = 0.9 - 0.3 * prune**2 - 0.05 * abs(math.log(rate)) - 0.02 * (optimizer == "lion")
    size = (100 - 60 * prune) * (0.8 if optimizer == "lion" else 1.0)
    failed = (prune, rate, optimizer) == FAILED
    return {
        "config": {"prune.ffn": prune, "learning_rate": rate, "optimizer": optimizer},
        "score": None if failed else score,
        "stderr": None if failed else 0.01,
        "curve": None if failed else [[10, score - 0.2], [20, score - 0.1], [STEPS, score]],
        "seconds": 2.0,
        "failed": "diverged" if failed else None,
        "peaks": {name: int(size * part * MIB) for name, part in EXACT},
    }


def made_up_table():
    """Return a table that nobody trained: a formula fills it in."""
    combinations = [c for c in product(PRUNE, RATES, OPTIMIZERS) if c != MISSING]
    return {
        "space": {
            "prune.ffn": PRUNE,
            "learning_rate": RATES,
            "optimizer": OPTIMIZERS,
            "checkpointing": [name for name, _ in EXACT],
        },
        "lossy": ["prune.ffn", "learning_rate", "optimizer"],
        "exact": ["checkpointing"],
        "steps": STEPS,
        "limit_bytes": 70 * MIB,
        "rows": [made_up_row(*combination) for combination in combinations],
    }


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "made_up_table.json"
    path.write_text(json.dumps(made_up_table()))
    return TableProblem.read(path)


def of(table, prune, rate, optimizer, checkpointing="none"):
    values = {
        "prune.ffn": prune,
        "learning_rate": rate,
        "optimizer": optimizer,
        "checkpointing": checkpointing,
    }
    return Config(values, table.space.knobs)


def test_the_space_of_a_table_holds_what_was_recorded_and_nothing_else(table):
    configs = list(table.space.enumerate(table.context))
    assert len(configs) == (len(PRUNE) * len(RATES) * len(OPTIMIZERS) - 1) * len(EXACT)
    assert not table.space.legal(of(table, *MISSING), table.context)
    assert table.space.legal(table.space.baseline(), table.context)
    assert table.peak(table.space.smallest(table.context)) == min(map(table.peak, configs))


def test_a_trial_of_a_table_is_what_was_recorded_with_the_noise_of_its_seed(table):
    config = of(table, 0.25, 1.0, "adamw", "full")
    loss, peak = table.true_point(config)
    assert (loss, peak * GIB) == (pytest.approx(0.1 + 0.3 * 0.25**2), int(85 * 0.6 * MIB))
    losses = [table.train(5, config, seed).outcome.scores[LOSS.name].value for seed in range(200)]
    assert table.train(5, config, 7) == table.train(5, config, 7)
    assert sum(losses) / len(losses) == pytest.approx(loss, abs=0.003)
    assert max(losses) - min(losses) > 0.03
    assert isinstance(table.train(0, of(table, 0.0, 1.0, "adamw"), 0).outcome, OutOfMemory)
    assert isinstance(table.train(0, of(table, *FAILED, "full"), 0).outcome, Diverged)


def test_trainings_of_a_table_that_failed_are_worth_nothing(table):
    failed = of(table, *FAILED, "full")
    assert trained_points(table, [failed]) == expanded_points(table, [failed]) == []
    whole = list(table.space.enumerate(table.context))
    assert share(table, trained_points(table, whole)) == pytest.approx(1.0)
    assert share(table, trained_points(table, whole[:3])) < 1.0
    one = of(table, 0.25, 0.3, "lion")
    assert (
        min(trained_points(table, table.expansions(one)), key=lambda p: p[1])
        == (expanded_points(table, [one])[0])
    )


def test_a_table_without_a_budget_gets_one_that_a_third_fits():
    document = made_up_table()
    del document["limit_bytes"]
    table = TableProblem(document)
    peaks = [table.peak(config) for config in table.space.enumerate(table.context)]
    fitting = sum(peak <= table.limit_bytes for peak in peaks) / len(peaks)
    assert fitting == pytest.approx(1 / 3, abs=0.05)
    with pytest.raises(BadValue):
        TableProblem({**document, "limit_bytes": 1})


def test_a_table_is_searched_with_rungs_where_it_has_curves(table):
    assert table.rungs == "10/40,20/40"
    proposer = make_proposer(RUNGS, table, 0)
    search = run_loop_search(table, proposer, 6, seed=0, rungs=table.rungs)
    assert search.cost <= 6.0
    assert len(search.records) > len(search.ends) >= 2
    whole = [record.config for record in search.records if isinstance(record.outcome, Completed)]
    assert sorted(config.fingerprint for config in whole) == (
        sorted(config.fingerprint for _, config in search.ends)
    )
    document = made_up_table()
    for row in document["rows"]:
        row["curve"] = None
    assert TableProblem(document).rungs == ""


@pytest.mark.skipif(not TABLE.is_file(), reason="no table of real trainings is recorded")
def test_the_recorded_table_can_be_searched():
    table = TableProblem.read()
    opening = [table.space.baseline(), table.space.smallest(table.context)]
    assert all(table.space.legal(config, table.context) for config in opening)
    assert table.rungs
    found = run_search(table, make_proposer("frontier", table, 0), 14, seed=0)
    assert 0.0 < shares(table, found, trained_points, (14,))[14] <= 1.0
    exact = {name for name, domain in table.space.domains.items() if domain.size > 1}
    assert {"checkpointing", "accumulation"} <= exact


@pytest.mark.parametrize("problem", [SCALING, VIOLATED])
def test_expansions_that_are_counted_at_once_are_those_that_are_listed(problem):
    config = Config({"width": 512, "optimizer": "lion"}, problem.space.knobs)
    listed = trained_points(problem, problem.expansions(config))
    assert len(listed) > 50
    assert all(problem.space.legal(c, problem.context) for c in problem.expansions(config))
    counted = expanded_points(problem, [config])
    assert share(problem, counted) == pytest.approx(share(problem, listed))


def test_costs_are_full_trainings_and_pauses_a_part_of_one():
    search = Search()
    good = Config({"checkpointing": "full", "micro_batch": 1}, SCALING.space.knobs)
    search.spent(1 / 3)
    search.spent(2 / 3, good)
    search.spent(1 / 9)
    found = shares(SCALING, search, trained_points, (1, 2))
    assert found == {1: share(SCALING, trained_points(SCALING, [good]))}
    assert found[1] > 0.0


def test_the_encoding_of_peers_returns_what_it_was_given():
    encoding = Encoding(SCALING.space)
    cube = Cube(encoding.distributions)
    config = Config({"width": 320, "learning_rate": 3e-4, "optimizer": "lion"}, SCALING.space.knobs)
    params = encoding.params(config)
    point = cube.point(params)
    assert len(point) == cube.width
    assert all(0.0 <= x <= 1.0 for x in point)
    assert cube.params(point) == {**params, "learning_rate": pytest.approx(3e-4)}
    corner = cube.params([1.0] * cube.width)
    assert (corner["width"], corner["learning_rate"]) == (4096, 1e-2)


def test_as_shipped_tpe_never_hears_of_what_ran_out_of_memory():
    proposer = make_proposer(OPTUNA_SHIPPED, SCALING, 0)
    search = run_search(SCALING, proposer, 12, seed=0)
    known = {record.number for record in search.records if record.feasible}
    assert set(proposer._told) == known
    assert len(known) < len(search.records)
    assert search.over > 0.0


def test_peers_that_are_not_installed_are_left_out_with_a_sentence(monkeypatch):
    monkeypatch.setattr(search_peers.importlib.util, "find_spec", lambda name: None)
    asked = Namespace(
        samplers=["random", BOTORCH, MO_ASHA], problems=["scaling"], seeds=2, first_seed=5,
        trials=20, slots=1, loop=False,
    )  # fmt: skip
    units, notes = plan_units(asked)
    assert [(unit.sampler, unit.seed) for unit in units] == [("random", 5), ("random", 6)]
    assert len(notes) == 2
    assert all("is left out: pip install" in note for note in notes)


def test_the_suite_does_without_the_peers():
    code = "import sys, tests.benchmarks.search; print({'botorch', 'syne_tune'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"


def test_searches_do_not_depend_on_how_many_processes_share_them(tmp_path):
    units = [
        Unit(problem="scaling", sampler=name, seed=3, trials=14) for name in ("qmc", "frontier")
    ]
    parts = tmp_path / "search.parts"
    found = measure_all(units, 2, parts)
    assert len(parts.read_text().splitlines()) == len(units)
    assert measure_all(units, 2, parts) == found  # a recording that was ended goes on
    for unit in units:
        here = measure(unit)
        assert (found[unit].trained, found[unit].expanded) == (here.trained, here.expanded)
        assert found[unit].over == here.over


def row(sampler, curve, *, shared=True):
    return Row(
        problem="made up", shared=shared, sampler=sampler, seeds=4, trained=curve, expanded=curve,
        over=0.0, ask_seconds=0.1, cpu_seconds=1.0,
    )  # fmt: skip


def test_the_verdict_says_how_many_trainings_are_needed():
    rows = [
        row("tpe", {10: (0.3, 0.0), 200: (0.6, 0.03)}),
        row("gp", {10: (0.4, 0.0), 50: (0.7, 0.02)}),
        row("frontier", {10: (0.5, 0.0), 20: (0.69, 0.0), 25: (0.7, 0.0)}),
        row("frontier, rungs", {10: (0.5, 0.0), 20: (0.65, 0.0)}),
    ]
    assert verdict(rows)[:3] == [
        "made up, trained: the best peer at up to 200 trainings is gp, with 0.700 ± 0.020 after 50",
        "  frontier reaches that after 25: 2.0 times fewer",
        "  frontier, rungs stays below it: 0.650 after 20",
    ]


def test_the_verdict_compares_at_equal_cost_where_assumptions_fail():
    rows = [
        row("tpe", {10: (0.30, 0.03), 25: (0.6, 0.0)}, shared=False),
        row("nsga2", {10: (0.35, 0.03), 25: (0.5, 0.0)}, shared=False),
        row("frontier", {10: (0.33, 0.04), 25: (0.64, 0.01)}, shared=False),
    ]
    assert verdict(rows)[0] == (
        "made up, trained: frontier minus the best peer: -0.020 ± 0.050 after 10 (nsga2), "
        "+0.040 ± 0.010 after 25 (tpe)"
    )
