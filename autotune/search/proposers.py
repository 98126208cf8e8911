"""The samplers that can be chosen by name, and who makes each of them a `Proposer`.

`frontier` is ours and the default; all others are Optuna's (`search/samplers.py`). Nothing here
imports optuna or scipy until a proposer is made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from autotune.core.context import Context
from autotune.core.errors import BadValue, UnknownName
from autotune.core.space import Space
from autotune.core.workload import Metric
from autotune.search.rungs import Rungs
from autotune.search.sampler import Proposer
from autotune.search.samplers import SAMPLERS

if TYPE_CHECKING:
    from autotune.search.rehearsals import Rehearse
    from autotune.search.warm_start import Earlier

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
        time_limit: Seconds of the run; None if that is open.
        slots: Trials side by side.
        rehearse: Counts the peak bytes of a configuration; None if nothing can.
        earlier: A run that is learned from first; None for none.
        rungs: Where trials pause.
    """

    space: Space
    context: Context
    metric: Metric
    limit_bytes: int
    seed: int = 0
    trials: int = 0
    time_limit: float | None = None
    slots: int = 1
    rehearse: Rehearse | None = None
    earlier: Earlier | None = None
    rungs: Rungs = field(default_factory=Rungs)


def check_sampler(name: str) -> None:
    """Check that there is a sampler of that name.

    Raises:
        UnknownName: If there is none.
    """
    if name not in PROPOSERS:
        raise UnknownName.among("sampler", name, PROPOSERS)


def check_learner(sampler: str) -> None:
    """Check that a sampler can learn from an earlier run.

    Raises:
        BadValue: If it cannot.
    """
    if sampler != DEFAULT_SAMPLER:
        raise BadValue(
            f"sampler '{sampler}' cannot learn from an earlier run",
            where="--warm-start",
            help=f"use --sampler {DEFAULT_SAMPLER}",
        )


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
    from autotune.search.deadline import Deadline
    from autotune.search.features import Features
    from autotune.search.frontier import MOST_LOSSY, FrontierProposer
    from autotune.search.rehearsals import SECONDS, Rehearsals

    lossy = len(Features(task.space).lossy)
    if lossy > MOST_LOSSY:
        proposer = _optuna("tpe", task)
        proposer.note = (
            f"{lossy} knobs that may change accuracy are too many for the frontier search "
            f"(at most {MOST_LOSSY}), so that Optuna's TPE searches instead"
        )
        return proposer
    make: Callable[..., Proposer] = FrontierProposer
    deadline: type[Deadline] = Deadline
    if task.rungs.on:
        from autotune.search.thaw import RungDeadline, ThawProposer

        make, deadline = partial(ThawProposer, rungs=task.rungs), RungDeadline
    return make(
        task.space,
        task.context,
        task.metric,
        seed=task.seed,
        limit_bytes=task.limit_bytes,
        deadline=deadline(task.trials, task.time_limit, task.slots),
        rehearsals=Rehearsals(task.rehearse, SECONDS),
        earlier=task.earlier,
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
