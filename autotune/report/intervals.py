"""How sure a difference is: half widths of 95 % intervals, from repeats or from standard errors.

The mean of a few paired differences follows Student's t distribution, whose quantiles stand in a
table up to thirty degrees of freedom and come from an expansion beyond. The difference of two
scores that were measured once each has the root of the sum of their squared standard errors; both
are over the same examples, so that the true interval is narrower than this one.

References:
    Student 1908, "The probable error of a mean"; Hill 1970, "Algorithm 396: Student's t-quantiles".
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from autotune.core.outcome import Score

NORMAL = statistics.NormalDist().inv_cdf(0.975)
_STUDENT = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
    *(2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423),
)


def student(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t distribution with that many degrees of freedom."""
    if freedom < 1:
        raise ValueError(f"a t distribution has at least 1 degree of freedom, but got {freedom}")
    if freedom <= len(_STUDENT):
        return _STUDENT[freedom - 1]
    z = NORMAL
    first = (z**3 + z) / (4 * freedom)
    return z + first + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


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
