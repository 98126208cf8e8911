"""What an earlier run taught, for a search that need not begin from nothing.

Accuracies of the earlier run are evidence with a discrepancy: what differs between the runs, such
as model, data, steps or seed, may shift all of them by any amount, and each configuration a little
beside (`surrogate.py`). Memory is only taken over from the same workload on the same device, and
time if trials are as long, too: a measurement of another device is never mixed with one of this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from autotune.core.errors import UsageError
from autotune.core.record import TrialRecord
from autotune.core.space import Space
from autotune.core.workload import RunSpec
from autotune.search.features import Features

_DEVICE = ("kind", "name", "total_bytes", "cores", "capability")
_SIZES = ("global_batch", "sequence_length")
_LENGTHS = ("steps", "eval_examples")


@dataclass(frozen=True, slots=True, kw_only=True)
class Earlier:
    """An earlier run, as far as a search may learn from it.

    Attributes:
        name: Of the run.
        records: Its trials whose configurations lie inside the space that is searched.
        memory: Whether memory was measured alike.
        time: Whether trials took as long as they take now.
        sentence: For the user: what is learned, and what is not.
    """

    name: str
    records: tuple[TrialRecord, ...]
    memory: bool = False
    time: bool = False
    sentence: str = ""


def earlier_run(
    spec: RunSpec, records: Sequence[TrialRecord], *, new: RunSpec, space: Space
) -> Earlier:
    """Return what a search may learn from an earlier run.

    Args:
        spec: Of the earlier run.
        records: Its trials.
        new: Of the run that is to learn.
        space: What that one searches.

    Raises:
        UsageError: If nothing can be learned: another objective or metric, or no trial inside the
            space.
    """
    there, here = spec.facts, new.facts
    if (there.workload.objective, there.metric.name) != (
        here.workload.objective,
        here.metric.name,
    ):
        raise UsageError(
            f"run '{spec.name}' trained {there.workload.objective} for {there.metric.name}, which "
            f"says nothing of {here.workload.objective} and {here.metric.name}",
            help="--warm-start takes a run of the same objective",
        )
    features = Features(space)
    inside = tuple(
        record
        for record in records
        if record.score(there.metric) is not None and features.codes(record.config) is not None
    )
    if not inside:
        raise UsageError(
            f"no completed trial of run '{spec.name}' lies inside space '{space.name}'",
            help="--warm-start takes a run that searched the same knobs",
        )
    other = _other_device(spec, new)
    other_workload = there.model.name != here.model.name or any(
        getattr(there.workload, name) != getattr(here.workload, name) for name in _SIZES
    )
    as_long = all(getattr(there.workload, n) == getattr(here.workload, n) for n in _LENGTHS)
    memory = not other and not other_workload
    found = Earlier(
        name=spec.name,
        records=inside,
        memory=memory,
        time=memory and as_long and spec.threads == new.threads,
    )
    return replace(found, sentence=_sentence(found, other))


def _other_device(spec: RunSpec, new: RunSpec) -> str:
    """Return the name of the device of a run, empty if it is that of the new one."""
    if all(spec.device.get(name) == new.device.get(name) for name in _DEVICE):
        return ""
    return str(spec.device.get("name") or spec.device["kind"])


def _sentence(found: Earlier, other: str) -> str:
    known = f"accuracy is known from {len(found.records)} trials of {found.name}, with reservation"
    if found.time:
        return f"{known}, memory and time as measured there"
    if found.memory:
        return f"{known}, memory as measured there; time is measured anew"
    why = f"that ran on another device, {other}" if other else "that trained another workload"
    return f"{known}; memory and time are measured anew: {why}"
