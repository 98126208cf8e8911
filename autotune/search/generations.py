"""NSGA-II whose generations follow from the order of trials alone.

Optuna notes in each trial to which generation it belongs when it is asked for. A study that is
built anew from records has no such notes; counting completed trials gives the same generations.
"""

from __future__ import annotations

from optuna.samplers import NSGAIISampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState


class OrderedNSGAIISampler(NSGAIISampler):
    """NSGA-II (Deb et al. 2002) for studies that are rebuilt before each proposal.

    Args:
        population: Individuals per generation.
        seed: Of all draws.
    """

    def __init__(self, population: int, seed: int) -> None:
        super().__init__(population_size=population, seed=seed)
        self._individuals = population

    def get_trial_generation(self, study: Study, trial: FrozenTrial) -> int:
        """Return the generation of a new trial: how many generations are completed."""
        return len(_completed(study)) // self._individuals

    def get_population(self, study: Study, generation: int) -> list[FrozenTrial]:
        """Return the completed trials of a generation."""
        start = generation * self._individuals
        return _completed(study)[start : start + self._individuals]


def _completed(study: Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
