"""How sure a difference is: half widths of 95 % intervals, from repeats or from standard errors.

The mean of a few paired differences follows Student's t distribution (`core/seeds.py`). The
difference of two scores that were measured once each has the root of the sum of their squared
standard errors; both are over the same examples, so that the true interval is narrower than this
one.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from autotune.core.outcome import Score
from autotune.core.seeds import NORMAL, student


def mean_error(differences: Sequence[float]) -> float | None:
    """Return the half width of the 95 % interval of a mean; None for fewer than two values."""
    if len(differences) < 2:
        return None
    spread = statistics.stdev(differences) / math.sqrt(len(differences))
    return student(len(differences) - 1) * spread


def score_error(a: Score | None, b: Score | None) -> float | None:
    """Return the half width of the 95 % interval of a difference of scores.

    Args:
        a: One score.
        b: The other one.

    Returns:
        The half width, or None if a standard error is missing.
    """
    if a is None or b is None or a.stderr is None or b.stderr is None:
        return None
    return NORMAL * math.hypot(a.stderr, b.stderr)
