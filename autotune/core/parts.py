"""A trial that was trained in parts: what they come to together.

A trial may pause and go on in another process (`trial/pausing.py`). Each process measures its own
part; here they are put together, so that what is recorded reads as one trial: the greatest peaks,
the sum of the seconds, and the score at every rung on the way.
"""

from __future__ import annotations

from dataclasses import replace

from autotune.core.outcome import Measurement, Outcome, Paused, Peak, PeakKind, Phase

FEWEST_STEPS = 7
"""Steps before a first pause: those with instruments, the one that is followed, and two timed."""


def pause_after(share: float, steps: int) -> int:
    """Return after how many of all optimizer steps a training pauses; all of them if it does not.

    Args:
        share: Of the training, from 0 to 1.
        steps: Of the whole training.
    """
    return min(steps, max(FEWEST_STEPS, round(share * steps)))


def continued(before: Paused, after: Outcome) -> Outcome:
    """Return how a trial stands that had paused and went on.

    Args:
        before: Where it had paused.
        after: How the process ended that went on, as it was told by that process alone.

    Returns:
        The same end, with what came before: peaks, seconds, rungs.
    """
    seconds = before.seconds + after.seconds
    later = tuple(replace(r, seconds=before.seconds + r.seconds) for r in after.rungs)
    return replace(
        after,
        seconds=seconds,
        measurement=both(before.measurement, after.measurement),
        rungs=(*before.rungs, *later),
    )


def both(before: Measurement, after: Measurement) -> Measurement:
    """Return the measurement of two parts of one training: of every peak the greatest.

    What only the first steps show, the anatomy, is that of the first part. The time of a step is
    that of the later part, which has more of them, unless it did none.
    """
    peaks: dict[tuple[Phase, PeakKind, int], int] = {}
    for peak in (*before.peaks, *after.peaks):
        key = (peak.phase, peak.kind, peak.rank)
        peaks[key] = max(peak.bytes, peaks.get(key, 0))
    timed = after if after.step_seconds else before
    return replace(
        before,
        peaks=tuple(Peak(phase=p, kind=k, rank=r, bytes=b) for (p, k, r), b in peaks.items()),
        anatomy=before.anatomy or after.anatomy,
        step_seconds=timed.step_seconds,
        throughput=timed.throughput,
        steps=max(before.steps, after.steps),
        parameters=before.parameters or after.parameters,
        trained_parameters=before.trained_parameters or after.trained_parameters,
    )
