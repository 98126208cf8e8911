"""Peers that are installed for this benchmark alone: `pip install 'autotune-memory[benchmark]'`.

- BoTorch's qLogNEHVI, as its tutorial on constrained problems with several objectives sets it up:
  a Gaussian process per outcome, and the budget as a constraint on an outcome that is learned.
  Choices among names become one column per name, everything else is scaled to 0 … 1, and what is
  proposed is rounded, as Optuna's integration does, which is bound to a BoTorch without qLogNEHVI.
- Syne Tune's MO-ASHA, driven through its scheduler's own interface by one worker: random
  configurations, of which those below the best part by non-dominated sorting end at each rung.

Neither knows rules: what is illegal or known is drawn again, as for every other sampler.

References:
    Daulton et al. 2021, arXiv:2105.08195 (noisy expected hypervolume improvement); Ament et al.
    2023, arXiv:2310.20708 (its logarithm); Schmucker et al. 2021, arXiv:2106.12639 (MO-ASHA).
"""

from __future__ import annotations

import datetime
import importlib.util
import math
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from autotune.core.config import Config
from autotune.core.outcome import Completed, OutOfMemory
from autotune.core.record import TrialRecord
from autotune.core.units import GIB
from autotune.search.asking import Asking
from autotune.search.encoding import Encoding
from autotune.search.rungs import Rungs
from tests.benchmarks.search_problems import LOSS
from tests.benchmarks.search_runs import Search, Trainings, opening_of

BOTORCH, MO_ASHA = "botorch", "mo-asha"
MODULES = {BOTORCH: "botorch", MO_ASHA: "syne_tune"}
"""What a peer is imported from."""

_INITIAL = 10
"""Trials before a model is fitted, as in Optuna's integration."""

_SAMPLES, _RESTARTS, _RAW = 64, 2, 64
_STEPS, _FITTING = 30, 50
"""Monte Carlo samples, starts of the search for the best candidate out of how many, and most steps
of that search and of a fit: fewer than in the tutorial, which needs ten seconds for a proposal."""

_MOST_DRAWS = 1000


def missing(sampler: str) -> str:
    """Say that a peer is not installed; nothing if it is, or needs no installation."""
    module = MODULES.get(sampler)
    if module is None or importlib.util.find_spec(module) is not None:
        return ""
    return f"{sampler} is left out: pip install 'autotune-memory[benchmark]' brings {module}"


class Cube:
    """Parameters as points of the unit cube.

    Args:
        distributions: Of the parameters, by name.

    Attributes:
        width: Dimensions of the cube.
    """

    def __init__(self, distributions: Mapping[str, BaseDistribution]) -> None:
        self._distributions = distributions
        self.width = sum(_width(found) for found in distributions.values())

    def point(self, params: Mapping[str, Any]) -> list[float]:
        """Return the point of parameters."""
        found: list[float] = []
        for name, distribution in self._distributions.items():
            if isinstance(distribution, CategoricalDistribution):
                found += [float(params[name] == value) for value in distribution.choices]
            else:
                low, high, value = _scaled(distribution, params[name])
                found.append((value - low) / (high - low))
        return found

    def params(self, point: Sequence[float]) -> dict[str, Any]:
        """Return the parameters nearest to a point."""
        found: dict[str, Any] = {}
        at = 0
        for name, distribution in self._distributions.items():
            part = point[at : at + _width(distribution)]
            at += len(part)
            if isinstance(distribution, CategoricalDistribution):
                found[name] = distribution.choices[int(np.argmax(part))]
            else:
                found[name] = _unscaled(distribution, part[0])
        return found


def _width(distribution: BaseDistribution) -> int:
    named = isinstance(distribution, CategoricalDistribution)
    return len(distribution.choices) if named else 1


def _scaled(distribution: Any, value: float) -> tuple[float, float, float]:
    """Return the ends of a range and a value of it, as logarithms where ratios matter."""
    numbers = (distribution.low, distribution.high, value)
    low, high, at = (math.log(x) for x in numbers) if distribution.log else map(float, numbers)
    return low, high, at


def _unscaled(distribution: Any, position: float) -> float | int:
    low, high, _ = _scaled(distribution, distribution.low)
    value = low + min(1.0, max(0.0, position)) * (high - low)
    value = math.exp(value) if distribution.log else value
    if isinstance(distribution, FloatDistribution):
        return float(min(distribution.high, max(distribution.low, value)))
    steps = round((value - distribution.low) / distribution.step)
    return int(distribution.low + steps * distribution.step)


class BotorchProposer(Asking):
    """A `Proposer` that asks BoTorch.

    Args:
        problem: What is searched; its worst loss and its budget are the reference point.
        seed: Of the run.
    """

    def __init__(self, problem: Trainings, seed: int) -> None:
        super().__init__(problem.space, problem.context, seed)
        self._encoding = Encoding(problem.space)
        self._cube = Cube(self._encoding.distributions)
        self._limit = problem.limit_bytes / GIB
        self._worst_loss = problem.worst_loss
        self._losses: list[tuple[list[float], float]] = []
        self._peaks: list[tuple[list[float], float]] = []

    def _learn(self, record: TrialRecord) -> None:
        """Keep the loss of a trial that was completed, and the memory of one that is known."""
        params = self._encoding.params(record.config)
        if params is None:
            return
        point, outcome = self._cube.point(params), record.outcome
        if isinstance(outcome, Completed):
            self._losses.append((point, outcome.scores[LOSS.name].value))
            self._peaks.append((point, outcome.measurement.peak_bytes / GIB))
        elif isinstance(outcome, OutOfMemory):
            self._peaks.append((point, outcome.needed_bytes / GIB))

    def _wishes(self, number: int) -> Iterator[Config]:
        if len(self._peaks) >= _INITIAL and len(self._losses) > 1:
            for point in self._candidates(number):
                yield self._encoding.config(self._cube.params(point))
            return
        rng = np.random.default_rng((self._seed, number))
        for _ in range(_MOST_DRAWS):
            yield self._encoding.config(self._cube.params(rng.random(self._cube.width)))

    def _candidates(self, number: int) -> list[list[float]]:
        """Return points where the acquisition is greatest, the best one first and last.

        The legal configuration that differs least from the last one is taken if none is legal.
        """
        import torch
        from botorch.optim import optimize_acqf
        from botorch.utils.sampling import manual_seed

        bounds = torch.stack([torch.zeros(self._cube.width), torch.ones(self._cube.width)]).double()
        with manual_seed(1000 * self._seed + number), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found, values = optimize_acqf(
                self._acquisition(),
                bounds,
                q=1,
                num_restarts=_RESTARTS,
                raw_samples=_RAW,
                options={"maxiter": _STEPS, "batch_limit": _RESTARTS},
                return_best_only=False,
            )
        points: list[list[float]] = found[values.argsort(descending=True), 0].tolist()
        return [*points, points[0]]

    def _acquisition(self) -> Any:
        import torch
        from botorch.acquisition.multi_objective import logei
        from botorch.acquisition.multi_objective.objective import GenericMCMultiOutputObjective
        from botorch.fit import fit_gpytorch_mll
        from botorch.models import ModelListGP, SingleTaskGP
        from botorch.models.transforms import Standardize
        from botorch.sampling import SobolQMCNormalSampler
        from gpytorch.mlls import SumMarginalLogLikelihood

        # It would compile a kernel of its own, and wait for ever where a process that was ended had
        # begun to. Without it the same is computed in Python.
        logei._load_attempted = True

        def gp(seen: Sequence[tuple[list[float], float]]) -> Any:
            points = torch.tensor([point for point, _ in seen]).double()
            values = torch.tensor([[value] for _, value in seen]).double()
            return SingleTaskGP(points, values, outcome_transform=Standardize(1))

        sizes = [(point, math.log(peak)) for point, peak in self._peaks]
        model = ModelListGP(gp([(point, -loss) for point, loss in self._losses]), gp(sizes))
        fit_gpytorch_mll(
            SumMarginalLogLikelihood(model.likelihood, model),
            optimizer_kwargs={"options": {"maxiter": _FITTING}},
        )
        return logei.qLogNoisyExpectedHypervolumeImprovement(
            model=model,
            ref_point=[-self._worst_loss, -self._limit],
            X_baseline=torch.tensor([point for point, _ in self._peaks]).double(),
            sampler=SobolQMCNormalSampler(torch.Size([_SAMPLES]), seed=self._seed),
            objective=GenericMCMultiOutputObjective(
                lambda found, X=None: torch.stack(  # noqa: N803  (its own name for it)
                    [found[..., 0], -found[..., 1].exp()], dim=-1
                )
            ),
            constraints=[lambda found: found[..., 1] - math.log(self._limit)],
            prune_baseline=True,
        )


def run_mo_asha(problem: Trainings, trials: int, *, seed: int) -> Search:
    """Search by Syne Tune's MO-ASHA for as long as so many full trainings take.

    A trial that fails is not reported, which the scheduler has no other way for.
    """
    from syne_tune.backend.trial_status import Trial

    # The scheduler draws from numpy's global generator, whatever its own seed.
    np.random.seed(seed)
    encoding, search = Encoding(problem.space), Search()
    shares = (*Rungs.of(problem.rungs, problem.steps).shares, 1.0)
    scheduler = _scheduler(encoding, shares)
    opening, known = opening_of(problem), set[Config]()
    while search.cost < trials:
        number, began = len(search.records), time.process_time()
        config = opening.pop(0) if opening else _drawn(problem, scheduler, encoding, known)
        if config is None:
            break
        known.add(config)
        trial = Trial(number, dict(config), datetime.datetime.now(tz=datetime.UTC))
        scheduler.on_trial_add(trial)
        search.records.append(problem.train(number, config, seed))
        seconds = time.process_time() - began
        if not isinstance(search.records[-1].outcome, Completed):
            search.spent(shares[0])
            scheduler.on_trial_error(trial)
            continue
        search.ask_seconds.append(seconds + _climb(problem, search, scheduler, trial, config, seed))
    return search


def _climb(
    problem: Trainings, search: Search, scheduler: Any, trial: Any, config: Config, seed: int
) -> float:
    """Train from rung to rung until the scheduler stops it; return CPU seconds to decide that."""
    from syne_tune.optimizer.scheduler import SchedulerDecision

    shares = (*Rungs.of(problem.rungs, problem.steps).shares, 1.0)
    before, seconds = 0.0, 0.0
    for share in shares:
        whole = share == 1.0
        search.spent(share - before, config if whole else None)
        before = share
        record = search.records[-1]
        score = record.score(LOSS) if whole else None
        score = score or problem.at_rung(trial.trial_id, config, seed, share)
        reported = {
            "loss": score.value,
            "memory": problem.peak(config) / GIB,
            "step": round(share / shares[0]),
        }
        began = time.process_time()
        decision = scheduler.on_trial_result(trial, reported)
        seconds += time.process_time() - began
        if decision == SchedulerDecision.STOP:
            break
    scheduler.on_trial_remove(trial)
    return seconds


def _scheduler(encoding: Encoding, shares: Sequence[float]) -> Any:
    from syne_tune.optimizer.schedulers.multiobjective.moasha import MOASHA

    return MOASHA(
        {name: _domain(found) for name, found in encoding.distributions.items()},
        metrics=["loss", "memory"],
        time_attr="step",
        max_t=round(1.0 / shares[0]),
        grace_period=1,
        reduction_factor=round(shares[1] / shares[0]),
    )


def _domain(distribution: BaseDistribution) -> Any:
    """Return Syne Tune's domain for a parameter; whole numbers are drawn as steps."""
    from syne_tune import config_space

    if isinstance(distribution, CategoricalDistribution):
        return config_space.choice(list(distribution.choices))
    if isinstance(distribution, IntDistribution):
        steps = (distribution.high - distribution.low) // distribution.step
        return config_space.randint(0, steps)
    low, high = distribution.low, distribution.high
    return (config_space.loguniform if distribution.log else config_space.uniform)(low, high)


def _drawn(
    problem: Trainings, scheduler: Any, encoding: Encoding, known: set[Config]
) -> Config | None:
    """Return the first suggestion that is legal and new, None if there seems to be none."""
    for _ in range(_MOST_DRAWS):
        drawn = dict(scheduler.suggest().config)
        for name, distribution in encoding.distributions.items():
            if isinstance(distribution, IntDistribution):
                drawn[name] = distribution.low + int(drawn[name]) * distribution.step
        config = encoding.config(drawn)
        if config not in known and problem.space.legal(config, problem.context):
            return config
    return None
