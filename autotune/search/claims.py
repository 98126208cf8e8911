"""Claims: configurations that are predicted to join the front without having been trained.

Configurations that differ in exact knobs alone have the same accuracy, so that one training tells
the accuracy of all of them; what each needs is predicted from what was measured. A claim is shown
as predicted until it is run once: `FrontierProposer` runs the best ones at the end of a search.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autotune.core.config import Config
from autotune.core.context import Context
from autotune.core.outcome import PeakKind, Phase
from autotune.core.pareto import front_indices
from autotune.core.record import TrialRecord
from autotune.core.space import Space
from autotune.core.workload import Metric
from autotune.search.features import Features, rows
from autotune.search.findings import exact_knobs_matter, finding_of
from autotune.search.memory_model import MemoryModel

_STEPS_ALONE = frozenset(
    {"accumulation", "checkpointing", "optimizer.kernel", "recompute.norms", "zero_grad"}
)

LEFT_ALONE = {Phase.LOAD: _STEPS_ALONE | {"loss_chunks"}, Phase.EVALUATE: _STEPS_ALONE}
"""Exact knobs that make training steps lean, and leave what a phase needs as it is."""

MOST_SETTINGS = 64
"""Settings of the exact knobs that are considered for each accuracy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A point of the front that is predicted, not measured.

    Attributes:
        config: The configuration.
        trained: Number of the trial that shows its accuracy.
        loss: That accuracy, to be minimised.
        peak_bytes: Expected peak memory.
        spread: Relative standard deviation of that.
    """

    config: Config
    trained: int
    loss: float
    peak_bytes: float
    spread: float


def claims(
    records: Sequence[TrialRecord],
    space: Space,
    context: Context,
    metric: Metric,
    *,
    limit_bytes: int,
) -> tuple[Claim, ...]:
    """Return what would join the front if it ran, by ascending expected peak.

    Args:
        records: Every trial of the run.
        space: What may be tried.
        context: What legality is judged by.
        metric: What is searched for.
        limit_bytes: What a footprint may reach.

    Returns:
        Legal configurations that were not tried, none of which is expected to be beaten by a trial
        or by another claim. Empty where trials show that exact knobs change accuracy.
    """
    features = Features(space)
    told = [
        (record, found)
        for record in sorted(records, key=lambda record: record.number)
        if (found := finding_of(record, features, metric, limit_bytes)) is not None
    ]
    trained = [(record, found) for record, found in told if found.scored]
    exact_matters = exact_knobs_matter([found for _, found in trained], features.lossy)
    if not trained or not len(features.exact) or exact_matters:
        return ()
    memory = MemoryModel(features, limit_bytes)
    memory.learn([found for _, found in told])
    settings = features.menu(features.exact, MOST_SETTINGS, np.random.default_rng(0))
    whole = np.repeat(rows([f.codes for _, f in trained], len(features.columns)), len(settings), 0)
    whole[:, features.exact] = np.tile(settings, (len(trained), 1))
    mean, spread = memory.peaks.at(whole)
    tried = {record.config for record in records}
    possible: list[Claim] = []
    for index in np.flatnonzero(mean <= np.log(memory.peak_limit)):
        record, found = trained[int(index) // len(settings)]
        config = features.config(whole[index])
        expected = max(float(np.exp(mean[index])), _least(record, config))
        if config not in tried and space.legal(config, context):
            possible.append(
                Claim(
                    config=config,
                    trained=record.number,
                    loss=found.loss,
                    peak_bytes=expected,
                    spread=float(spread[index]),
                )
            )
    return _joining(possible, [record.point(metric) for record, _ in trained])


def _least(record: TrialRecord, config: Config) -> float:
    """Return what a trial measured beside its steps that another setting leaves alone, in bytes."""
    if record.outcome is None:
        return 0.0
    changed = {n for n in {*record.config, *config} if record.config.get(n) != config.get(n)}
    measured = record.outcome.measurement
    kind = PeakKind.RESERVED if measured.peak(PeakKind.RESERVED) else PeakKind.ALLOCATED
    same = [phase for phase, knobs in LEFT_ALONE.items() if changed <= knobs]
    counted = [phase for phase in same if measured.counted in ("", phase)]
    return float(max((measured.peak(kind, phase) for phase in counted), default=0))


def _joining(
    possible: Sequence[Claim], measured: Sequence[tuple[float, float] | None]
) -> tuple[Claim, ...]:
    """Return the claims that neither a measured point nor another claim beats."""
    known = [point for point in measured if point is not None]
    points = known + [(claim.loss, claim.peak_bytes) for claim in possible]
    return tuple(possible[i - len(known)] for i in front_indices(points) if i >= len(known))
