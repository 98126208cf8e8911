"""The frontier search inside plain Optuna studies."""

from __future__ import annotations

import json

import optuna
from optuna.trial import TrialState

from autotune.core.units import GIB
from autotune.search.encoding import Encoding
from autotune.search.frontier_sampler import DRAWN, FrontierSampler
from autotune.search.quiet import quiet_optuna
from tests.benchmarks.search_problems import SCALING

ENCODING = Encoding(SCALING.space)


def sampler(seed=0):
    return FrontierSampler(
        SCALING.space, SCALING.context, limit_bytes=SCALING.limit_bytes, seed=seed
    )


def study_with(a_sampler, **more):
    with quiet_optuna():
        return optuna.create_study(directions=["minimize"] * 2, sampler=a_sampler, **more)


def objective(trial):
    """Train with what is suggested; out of memory is told as pruned."""
    params = {
        name: trial.suggest_float(name, d.low, d.high, log=d.log)
        if isinstance(d, optuna.distributions.FloatDistribution)
        else trial.suggest_categorical(name, d.choices)
        if isinstance(d, optuna.distributions.CategoricalDistribution)
        else trial.suggest_int(name, d.low, d.high, step=d.step, log=d.log)
        for name, d in ENCODING.distributions.items()
    }
    loss, gib = SCALING.true_point(ENCODING.config(params))
    if gib * GIB > SCALING.limit_bytes:
        raise optuna.TrialPruned
    return loss, gib * GIB


def test_a_study_is_searched_with_legal_and_distinct_configurations():
    study = study_with(sampler())
    with quiet_optuna():
        study.optimize(objective, n_trials=18)
    found = [ENCODING.config(trial.params) for trial in study.trials]
    assert len(set(found)) == 18
    assert all(SCALING.space.legal(config, SCALING.context) for config in found)
    late = [trial.state for trial in study.trials[8:]]
    assert late.count(TrialState.COMPLETE) >= 8


def test_another_process_goes_on_from_the_study_and_sees_what_runs(tmp_path):
    url = f"sqlite:///{tmp_path / 'study.db'}"
    first = study_with(sampler(), storage=url, study_name="shared")
    with quiet_optuna():
        first.optimize(objective, n_trials=12)
        running = first.ask()
        running.suggest_int("depth", 4, 48)  # all of it is drawn now, one is known to the study
        second = optuna.load_study(study_name="shared", storage=url, sampler=sampler())
        seen = second.get_trials(deepcopy=False)[running.number].system_attrs
        second.optimize(objective, n_trials=2)
    finished = [t for t in second.trials if t.state.is_finished()]
    found = {ENCODING.config(trial.params) for trial in finished}
    assert len(found) == 14
    assert ENCODING.config(json.loads(seen[f"{DRAWN}:0"])) not in found


def test_a_parameter_that_is_not_in_the_space_is_drawn_at_random(caplog):
    study = study_with(sampler())
    with quiet_optuna():
        value = study.ask().suggest_float("colour", 0, 1)
    assert 0 <= value <= 1


def test_a_trial_that_failed_is_not_drawn_again():
    study = study_with(sampler())
    with quiet_optuna():
        trial = study.ask(ENCODING.distributions)
        failed = ENCODING.config(trial.params)
        study.tell(trial, state=TrialState.FAIL)
        drawn = [ENCODING.config(study.ask(ENCODING.distributions).params) for _ in range(5)]
    assert failed not in drawn
    assert len(set(drawn)) == 5
