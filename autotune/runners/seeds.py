"""The data of another seed, prepared as that of the recorded one was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from autotune.core.workload import WorkloadFacts
from autotune.runners.base import Runner


def prepare_seed(
    runner: Runner, facts: WorkloadFacts, further: int, cache: Path
) -> tuple[WorkloadFacts, bool]:
    """Prepare the data of a trial with another seed, and tell whether it is the recorded data.

    An objective may prepare more of a text than the sequence length that it chose by itself, so
    if the recorded workload gives other data, it is asked to choose again.

    Args:
        runner: Asks the objective.
        facts: What was recorded.
        further: How much the seed is above the recorded one; 0 for that itself.
        cache: Where prepared data goes.
    """
    workload = replace(facts.workload, seed=facts.workload.seed + further)
    found = facts
    for asked in (workload, replace(workload, sequence_length=0)):
        found = runner.describe(asked, cache)
        if found.data_fingerprint == facts.data_fingerprint:
            break
    found = found if found.workload == workload else runner.describe(workload, cache)
    same = found.data_fingerprint == facts.data_fingerprint
    return replace(found, workload=workload), same
