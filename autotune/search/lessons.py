"""What a sampler is told of a trial that ended: the form decides whether it learns at all.

Told as failed, an out-of-memory trial is invisible to every sampler, and the same region is drawn
again and again. It is told as pruned to samplers that read pruned trials, and to the others as
completed with the worst loss seen so far and the bytes that it needed, in both cases with a
positive constraint "memory": how far over the limit, in GiB.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from autotune.core.outcome import Completed, OutOfMemory, Paused, Refused, Stopped
from autotune.core.record import TrialRecord
from autotune.core.units import GIB, MIB
from autotune.core.workload import Metric
from autotune.search.encoding import Encoding
from autotune.search.rungs import lifts, rung_loss
from autotune.search.samplers import Reads

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial


class Lessons:
    """Turns records into what a sampler reads.

    Args:
        encoding: How configurations are encoded.
        metric: What is searched for.
        limit_bytes: The limit of trials whose record has none.
        reads: What the sampler reads.
    """

    def __init__(self, encoding: Encoding, metric: Metric, limit_bytes: int, reads: Reads) -> None:
        self._encoding = encoding
        self._metric = metric
        self._limit_bytes = limit_bytes
        self._reads = reads
        self._lifts: dict[float, float] = {}

    def of(self, records: Iterable[TrialRecord]) -> list[FrozenTrial]:
        """Return the lessons of trials that ended, in order; some trials teach nothing."""
        if self._reads is Reads.NOTHING:
            return []
        ended = [record for record in records if record.outcome is not None]
        self._lifts = lifts(ended, self._metric)
        losses = [point[0] for record in ended if (point := objectives(record, self._metric))]
        worst = max(losses, default=0.0)
        return [found for record in ended if (found := self._lesson(record, worst)) is not None]

    def _lesson(self, record: TrialRecord, worst: float) -> FrozenTrial | None:
        values = objectives(record, self._metric) or self._expected(record)
        over = memory_violation(record, record.limit_bytes or self._limit_bytes)
        if isinstance(record.outcome, Stopped | Paused) and values is None:
            return None  # nobody knows how it would have ended
        if values is not None:
            return self._trial(record, values, {"memory": over, "failed": 0.0})
        if self._reads is Reads.COMPLETED_AND_PRUNED:
            failed = 0.0 if isinstance(record.outcome, OutOfMemory | Refused) else 1.0
            return self._trial(record, None, {"memory": over, "failed": failed})
        if isinstance(record.outcome, OutOfMemory | Refused):
            needed = float(record.outcome.needed_bytes)
            return self._trial(record, (worst, needed), {"memory": over})
        return None

    def _expected(self, record: TrialRecord) -> tuple[float, float] | None:
        """Return loss and peak bytes that a trial which paused would have ended with.

        The loss is that of its last rung, changed by what the median of those changed that went on.
        """
        paused = record.rungs and isinstance(record.outcome, Paused | Stopped)
        if not paused or record.outcome is None:
            return None
        share = record.rungs[-1].share
        loss = rung_loss(record, share, self._metric)
        if loss is None or not math.isfinite(loss):
            return None
        peak = float(record.outcome.measurement.peak_bytes)
        return loss + self._lifts.get(share, 0.0), peak

    def _trial(
        self,
        record: TrialRecord,
        values: tuple[float, float] | None,
        constraints: Mapping[str, float],
    ) -> FrozenTrial | None:
        from optuna.trial import TrialState, create_trial

        params = self._encoding.params(record.config)
        if params is None:
            return None
        if self._reads is Reads.COMPLETED:
            # The Gaussian process fits a model per constraint, all trials must have the same ones.
            constraints = {"memory": constraints["memory"]}
        return create_trial(
            state=TrialState.PRUNED if values is None else TrialState.COMPLETE,
            values=values,
            params=params,
            distributions=self._encoding.distributions,
            constraints=dict(constraints),
        )


def objectives(record: TrialRecord, metric: Metric) -> tuple[float, float] | None:
    """Return loss and peak bytes of a completed trial, over its limit or not; else None.

    A score that is missing, infinite or not a number counts as none.
    """
    score = record.score(metric)
    if score is None or record.outcome is None or not math.isfinite(score.value):
        return None
    return metric.loss(score.value), float(record.outcome.measurement.peak_bytes)


def memory_violation(record: TrialRecord, limit_bytes: int) -> float:
    """Return how far a trial was over the limit in GiB; at most 0 if it was not."""
    if isinstance(record.outcome, OutOfMemory | Refused):
        # What failed may be less than the limit: the request came on top of what else is there.
        return (max(record.outcome.needed_bytes, limit_bytes + MIB) - limit_bytes) / GIB
    if isinstance(record.outcome, Completed | Paused):
        return (record.outcome.measurement.footprint_bytes - limit_bytes) / GIB
    return 0.0
