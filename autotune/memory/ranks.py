"""The memory of every rank of a layout, on one CPU and without starting any.

Ranks are rehearsed like a trial of one rank: the same code, on fake tensors, with collectives that
only have shapes. Ranks that hold the same are rehearsed once, so a layout of a thousand costs as
much as its stages and servers do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace

from torch import distributed

from autotune.core.knob import run_stage
from autotune.knobs import BUILTIN
from autotune.knobs.stages import LAYOUT, LayoutPlan
from autotune.memory.rehearsal import Rehearsal
from autotune.memory.rehearse import rehearse, trace
from autotune.memory.streams import no_streams
from autotune.memory.trace import Scale, Trace
from autotune.trial.layouts.join import join
from autotune.trial.layouts.seat import REHEARSED, Seat
from autotune.trial.layouts.team import Team
from autotune.trial.spec import TrialSpec

_FEW_STAGES = 4
"""Stages of a pipeline that are all rehearsed; of more the first two and the last are."""


def rehearse_ranks(
    spec: TrialSpec, *, semantics: str | None = None, record: bool = False
) -> Rehearsal:
    """Rehearse a trial of several ranks.

    Args:
        spec: The trial.
        semantics: As for `rehearse`.
        record: As for `rehearse`.

    Returns:
        That of the rank with the greatest peak, with the peaks of all that differ.

    Raises:
        CannotRehearse: If fake tensors cannot follow a rank.
        AutotuneError: What the trial itself raises.
    """
    layout = run_stage(LAYOUT, LayoutPlan(), BUILTIN, spec.config)
    found = {}
    for rank in different_ranks(layout):
        with seated(spec, rank) as team:
            found[rank] = rehearse(spec, semantics=semantics, record=record, team=team)
    peaks = {rank: rehearsal.peak_bytes for rank, rehearsal in found.items()}
    seconds = sum(rehearsal.seconds for rehearsal in found.values())
    worst = max(found, key=lambda rank: peaks[rank])
    return replace(found[worst], by_rank=peaks, seconds=round(seconds, 4))


def trace_ranks(spec: TrialSpec, scale: Scale | None = None) -> Trace:
    """Trace the first rank, where all others are like it; see `rehearse.trace`."""
    with seated(spec, 0) as team:
        return trace(spec, scale, team)


@contextmanager
def seated(spec: TrialSpec, rank: int) -> Iterator[Team]:
    """Take the seat of a rank among others that are not there."""
    ordered = no_streams() if spec.device.kind == "cuda" else nullcontext()
    team = join(spec, Seat(rank=rank, address=REHEARSED))
    try:
        with ordered:
            yield team
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


def different_ranks(layout: LayoutPlan) -> tuple[int, ...]:
    """Return the first of all ranks that hold the same.

    Stages of a pipeline differ, servers from workers, and the end of a sequence, which looks back
    at all of it, from its beginning. Of ranks that divide something the first has the largest part,
    if parts are not equal.
    """
    if layout.data == "server":
        return (0, *range(layout.ranks - layout.servers, layout.ranks))
    if layout.pipeline > _FEW_STAGES:  # those between hold what the second does, or less of it
        each = layout.ranks // layout.pipeline
        return (0, each, (layout.pipeline - 1) * each)
    if layout.context > 1:
        return (0, (layout.context - 1) * layout.tensor)
    return tuple(range(0, layout.ranks, layout.ranks // layout.pipeline))
