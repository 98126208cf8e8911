"""Between configurations and the parameters that a sampler draws.

A knob with several numbers is drawn by the rank of its value, so that a sampler knows that rank 8
lies between 4 and 16; a knob with names is drawn as a category. For people who look at a study in
optuna-dashboard, `shown_distributions` keeps the values as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from autotune.core.config import Config
from autotune.core.domains import Choice, Domain, Float, Value
from autotune.core.space import Space


class Encoding:
    """Encodes the configurations of a space; knobs with a single value are left out.

    Args:
        space: The space.
    """

    def __init__(self, space: Space) -> None:
        self._space = space
        self._fixed = {n: d.grid()[0] for n, d in space.domains.items() if d.size == 1}
        free = {name: domain for name, domain in space.domains.items() if domain.size != 1}
        self._ranks = {n: ranks for n, d in free.items() if (ranks := _ranks(d))}
        self.distributions: dict[str, BaseDistribution] = {
            name: IntDistribution(0, len(self._ranks[name]) - 1)
            if name in self._ranks
            else _distribution(domain)
            for name, domain in free.items()
        }

    def config(self, params: Mapping[str, Any]) -> Config:
        """Return the configuration that drawn parameters stand for."""
        values: dict[str, Value] = dict(self._fixed)
        for name, param in params.items():
            values[name] = self._ranks[name][param] if name in self._ranks else param
        return Config(values, self._space.knobs)

    def params(self, config: Config) -> dict[str, Any] | None:
        """Return the parameters of a configuration, None if it lies outside the space."""
        values = config.complete(self._space.knobs)
        for knob in self._space.knobs:
            domain = self._space.domains.get(knob.name)
            value = values[knob.name]
            if value not in domain if domain is not None else value != knob.neutral:
                return None
        return {
            name: self._ranks[name].index(values[name]) if name in self._ranks else values[name]
            for name in self.distributions
        }


def shown_distributions(space: Space) -> dict[str, BaseDistribution]:
    """Return a distribution over the values themselves for every listed knob."""
    return {name: _distribution(domain) for name, domain in space.domains.items()}


def _ranks(domain: Domain) -> tuple[int | float, ...]:
    """Return the values of a choice among numbers, ascending; nothing for other domains."""
    if not isinstance(domain, Choice):
        return ()
    numbers = [value for value in domain.values if not isinstance(value, str)]
    return tuple(sorted(numbers)) if len(numbers) == domain.size else ()


def _distribution(domain: Domain) -> BaseDistribution:
    if isinstance(domain, Choice):
        return CategoricalDistribution(domain.values)
    if isinstance(domain, Float):
        return FloatDistribution(domain.low, domain.high, log=domain.log)
    return IntDistribution(domain.low, domain.high, step=domain.step, log=domain.log)
