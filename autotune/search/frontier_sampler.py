"""The frontier search as a sampler for plain Optuna studies.

A study without autotune's loop can use it too: the objective asks for its parameters as usual, and
the sampler draws all of them together from a declared `Space`. The study itself is the memory, so
that several processes may share one storage; each keeps a `FrontierProposer` and tells it what the
study has learned since the last draw.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from autotune.core.config import Config
from autotune.core.context import Context
from autotune.core.outcome import (
    Completed,
    Crashed,
    Measurement,
    Outcome,
    OutOfMemory,
    Peak,
    PeakKind,
    Phase,
    Score,
)
from autotune.core.record import TrialRecord
from autotune.core.space import Space
from autotune.core.workload import Metric
from autotune.search.encoding import Encoding
from autotune.search.frontier import FrontierProposer

DRAWN = "autotune:drawn"
"""System attribute of a trial: the parameters drawn for it, as JSON, in parts."""

_PART = 2000
"""Characters of one part: databases keep attributes of about two thousand."""

_LOSS = Metric(name="loss", maximize=False)


class FrontierSampler(BaseSampler):
    """Draws whole configurations by expected hypervolume improvement with known memory.

    The study's values are `(loss, peak bytes)`, both minimised; a trial whose peak is over the
    limit is infeasible, its loss counts none the less. A trial that ran out of memory should be
    told as pruned. Parameters are named like knobs; a knob with several numbers is drawn by the
    rank of its value, as `Encoding.distributions` says.

    Args:
        space: What may be drawn.
        context: What legality is judged by.
        limit_bytes: What a trial's peak may reach.
        seed: Of the search.
    """

    def __init__(self, space: Space, context: Context, *, limit_bytes: int, seed: int = 0) -> None:
        self._space = space
        self._limit_bytes = limit_bytes
        self._encoding = Encoding(space)
        self._independent = RandomSampler(seed)
        self._proposer = FrontierProposer(space, context, _LOSS, seed=seed, limit_bytes=limit_bytes)
        self._told: set[int] = set()

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return every knob that varies: what is declared, not what earlier trials shared."""
        return dict(self._encoding.distributions)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return parameters for a trial; none if the space is exhausted."""
        for other in study.get_trials(deepcopy=False):
            if other.number != trial.number and other.number not in self._told:
                self._tell(other)
        config = self._proposer.ask(trial.number)
        params = None if config is None else self._encoding.params(config)
        if params is None:
            return {}
        text = json.dumps(params)
        for part, start in enumerate(range(0, len(text), _PART)):
            study._storage.set_trial_system_attr(
                trial._trial_id, f"{DRAWN}:{part}", text[start : start + _PART]
            )
        return params

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Draw a parameter that the space does not declare at random, and say so."""
        optuna.logging.get_logger(__name__).warning(
            f"{param_name} is not in space '{self._space.name}', so it is drawn at random"
        )
        return self._independent.sample_independent(study, trial, param_name, param_distribution)

    def reseed_rng(self) -> None:
        """Leave the search as it is: its draws follow from the number of the trial."""
        self._independent.reseed_rng()

    def _tell(self, trial: FrozenTrial) -> None:
        params = trial.params if trial.state.is_finished() else _drawn(trial.system_attrs)
        if not set(self._encoding.distributions) <= set(params):
            return
        record = TrialRecord(
            number=trial.number,
            config=self._config(params),
            outcome=self._outcome(trial),
            limit_bytes=self._limit_bytes,
        )
        self._proposer.tell(record)
        if trial.state.is_finished():
            self._told.add(trial.number)

    def _config(self, params: Mapping[str, Any]) -> Config:
        return self._encoding.config({n: params[n] for n in self._encoding.distributions})

    def _outcome(self, trial: FrozenTrial) -> Outcome | None:
        if not trial.state.is_finished():
            return None
        if trial.state is TrialState.PRUNED:
            return OutOfMemory(needed_bytes=self._limit_bytes + 1)
        if trial.state is TrialState.FAIL or not all(map(math.isfinite, trial.values)):
            return Crashed(error="failed")
        loss, peak = trial.values
        peaks = (Peak(phase=Phase.STEADY, kind=PeakKind.ALLOCATED, bytes=int(peak)),)
        return Completed(
            measurement=Measurement(peaks=peaks), scores={_LOSS.name: Score(value=loss)}
        )


def _drawn(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters that a running trial was given, also before it asked for them."""
    parts: list[str] = []
    while (key := f"{DRAWN}:{len(parts)}") in attributes:
        parts.append(attributes[key])
    return dict(json.loads("".join(parts))) if parts else {}
