"""Optuna's samplers that can be chosen by name, and how each of them has to be taught.

Optuna's samplers differ in what they read of the past. TPE reads completed and pruned trials, the
genetic algorithm and the Gaussian process read completed ones only, and none reads failed ones. A
trial that ran out of memory must teach all of them, so it is told in the form that each one reads.
Nothing here imports optuna until a sampler is made.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autotune.core.errors import UnknownName

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

POPULATION = 20
"""Individuals per generation: Optuna's 50 would spend a whole run on random ones."""


class Reads(enum.Enum):
    """Which ended trials a sampler learns from."""

    COMPLETED_AND_PRUNED = enum.auto()
    COMPLETED = enum.auto()
    NOTHING = enum.auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplerKind:
    """A sampler that can be chosen.

    Attributes:
        help: What it is, for listings.
        make: Makes it from a seed.
        reads: What it learns from.
        attempts: Draws before the neighbourhood of a draw is searched instead. Few where a draw
            is slow and the next one is likely to be the same.
        sequence: Whether it is one fixed sequence of points, whatever was seen.
    """

    help: str
    make: Callable[[int], BaseSampler]
    reads: Reads
    attempts: int = 30
    sequence: bool = False


def sampler_kind(name: str) -> SamplerKind:
    """Return the sampler of that name.

    Raises:
        UnknownName: If there is none.
    """
    if name not in SAMPLERS:
        raise UnknownName.among("sampler", name, SAMPLERS)
    return SAMPLERS[name]


def _tpe(seed: int) -> BaseSampler:
    from optuna.samplers import TPESampler

    return TPESampler(multivariate=True, constant_liar=True, seed=seed)


def _nsga2(seed: int) -> BaseSampler:
    from autotune.search.generations import OrderedNSGAIISampler

    return OrderedNSGAIISampler(POPULATION, seed)


def _gp(seed: int) -> BaseSampler:
    from optuna.samplers import GPSampler

    return GPSampler(seed=seed, warn_independent_sampling=False)


def _random(seed: int) -> BaseSampler:
    from optuna.samplers import RandomSampler

    return RandomSampler(seed=seed)


def _qmc(seed: int) -> BaseSampler:
    from optuna.samplers import QMCSampler

    return QMCSampler(scramble=True, seed=seed, warn_independent_sampling=False)


SAMPLERS: Mapping[str, SamplerKind] = {
    "tpe": SamplerKind(
        help="tree-structured Parzen estimator, multivariate and multi-objective",
        make=_tpe,
        reads=Reads.COMPLETED_AND_PRUNED,
    ),
    "nsga2": SamplerKind(
        help="genetic algorithm with constrained domination", make=_nsga2, reads=Reads.COMPLETED
    ),
    "gp": SamplerKind(
        help="Gaussian processes with expected hypervolume improvement; about a second per trial",
        make=_gp,
        reads=Reads.COMPLETED,
        attempts=4,
    ),
    "random": SamplerKind(help="uniform draws", make=_random, reads=Reads.NOTHING),
    "qmc": SamplerKind(
        help="scrambled Sobol sequence", make=_qmc, reads=Reads.NOTHING, sequence=True
    ),
}
"""Samplers by name.

References: Watanabe 2023, arXiv:2304.11127 (TPE); Ozaki et al. 2022 (multi-objective TPE); Deb et
al. 2002 (NSGA-II); Daulton et al. 2020, arXiv:2006.05078 (expected hypervolume improvement);
Owen 1998 (scrambled Sobol points).
"""
