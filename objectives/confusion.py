"""Scores of a classifier from its confusion matrix, with their standard errors."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from autotune.core.outcome import Score
from autotune.core.workload import Metric

METRICS = (
    Metric(name="accuracy", maximize=True),
    Metric(name="macro_f1", maximize=True),
)

_RESAMPLES = 200


def confusion_scores(counts: NDArray[np.int64]) -> dict[str, Score]:
    """Return accuracy and macro-averaged F1 of a confusion matrix `(true, guessed)`.

    The standard error of accuracy is the binomial one. That of macro-averaged F1 is by bootstrap:
    resampling texts is drawing a confusion matrix from the multinomial distribution of this one.

    References:
        Efron 1979, Bootstrap methods: another look at the jackknife.
    """
    total = int(counts.sum())
    accuracy = float(np.trace(counts) / total)
    resampled = np.random.default_rng(0).multinomial(
        total, (counts / total).ravel(), size=_RESAMPLES
    )
    spread = float(_macro_f1(resampled.reshape(-1, *counts.shape)).std(ddof=1))
    return {
        "accuracy": Score(
            value=accuracy, stderr=float(np.sqrt(accuracy * (1 - accuracy) / total)), n=total
        ),
        "macro_f1": Score(value=float(_macro_f1(counts[None])[0]), stderr=spread, n=total),
    }


def _macro_f1(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the mean F1 over classes that occur, for each matrix `(matrices, true, guessed)`."""
    right = np.diagonal(counts, axis1=1, axis2=2)
    seen = counts.sum(1) + counts.sum(2)
    f1 = 2 * right / np.maximum(seen, 1)
    mean: NDArray[np.float64] = f1.sum(1) / np.maximum((seen > 0).sum(1), 1)
    return mean
