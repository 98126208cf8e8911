"""The samplers that can be chosen by name, and who makes each of them a `Proposer`.

`frontier` is ours and the default; all others are Optuna's (`search/samplers.py`). Nothing here
imports optuna or scipy until a proposer is made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from autotune.core.context import Context
from autotune.core.errors import UnknownName
from autotune.core.space import Space
from autotune.core.workload import Metric
from autotune.search.sampler import Proposer
from autotune.search.samplers import SAMPLERS

DEFAULT_SAMPLER = "frontier"


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is searched.

    Attributes:
        space: What may be proposed.
        context: What legality is judged by.
        metric: What is searched for, besides low memory.
        limit_bytes: What a trial's footprint may reach.
        seed: Of the run.
        trials: How many trials the run will have; 0 if that is open.
    """

    space: Space
    context: Context
    metric: Metric
    limit_bytes: int
    seed: int = 0
    trials: int = 0


def check_sampler(name: str) -> None:
    """Check that there is a sampler of that name.

    Raises:
        UnknownName: If there is none.
    """
    if name not in PROPOSERS:
        raise UnknownName.among("sampler", name, PROPOSERS)


def make_proposer(name: str, task: Task) -> Proposer:
    """Return a proposer for a task.

    Args:
        name: Of the sampler.
        task: What is searched.

    Raises:
        UnknownName: If there is no such sampler.
    """
    check_sampler(name)
    return PROPOSERS[name](task)


def _frontier(task: Task) -> Proposer:
    from autotune.search.features import Features
    from autotune.search.frontier import MOST_LOSSY, FrontierProposer

    lossy = len(Features(task.space).lossy)
    if lossy > MOST_LOSSY:
        proposer = _optuna("tpe", task)
        proposer.note = (
            f"{lossy} knobs that may change accuracy are too many for the frontier search "
            f"(at most {MOST_LOSSY}), so that Optuna's TPE searches instead"
        )
        return proposer
    return FrontierProposer(
        task.space,
        task.context,
        task.metric,
        seed=task.seed,
        limit_bytes=task.limit_bytes,
        trials=task.trials,
    )


def _optuna(name: str, task: Task) -> Proposer:
    from autotune.search.optuna import OptunaProposer

    return OptunaProposer(
        task.space,
        task.context,
        task.metric,
        sampler=name,
        seed=task.seed,
        limit_bytes=task.limit_bytes,
    )


PROPOSERS: Mapping[str, Callable[[Task], Proposer]] = {
    DEFAULT_SAMPLER: _frontier,
    **{name: partial(_optuna, name) for name in SAMPLERS},
}
"""Makers of proposers by the name that `--sampler` takes."""
