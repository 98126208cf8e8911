"""The layouts that fit, fastest first: time from first principles, memory from rehearsal alone.

Legal layouts are put in the order of their predicted time and rehearsed in that order until enough
of them fit. Passed over is what holds at least as much as something that did not fit, and what has
no room for the least that weights, optimizer states and blocks can keep. Nothing is run, and no
device is needed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from autotune.core.config import Config
from autotune.core.errors import AutotuneError
from autotune.memory.predict import Estimate
from autotune.parallel.layouts import holds_as_much, least_bytes
from autotune.parallel.pace import Pace, Work, pace_of
from autotune.parallel.rates import Rates

Predict = Callable[[Config], Estimate]
"""Rehearses a configuration under the limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A layout that fits.

    Attributes:
        config: The configuration.
        pace: Its predicted time.
        estimate: Its predicted memory, of the rank that needs most.
    """

    config: Config
    pace: Pace
    estimate: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Layouts:
    """What was looked at.

    Attributes:
        fitting: Layouts that fit, fastest first.
        legal: Layouts that are legal.
        rehearsed: Those that were rehearsed.
        refused: Those of them that do not fit.
        passed: Those that were passed over, since weights, states and what blocks keep do not fit
            by themselves, or what holds no more did not.
        failed: Why others could not be rehearsed: sentences.
        leanest: Of those that do not fit, the one that needs least; None if there is none.
        seconds: How long it took.
        rates: Where the rates are from that times are predicted with.
    """

    fitting: tuple[Planned, ...]
    legal: int
    rehearsed: int
    refused: int
    passed: int
    failed: tuple[str, ...]
    leanest: Planned | None
    seconds: float
    rates: str


def plan_layouts(
    work: Work,
    rates: Rates,
    predict: Predict,
    *,
    candidates: Sequence[Config],
    limit_bytes: int,
    most: int,
    patience: float,
) -> Layouts:
    """Find the fastest layouts that fit.

    Args:
        work: What a step is.
        rates: Of the devices.
        predict: Rehearses a configuration.
        candidates: What is legal.
        limit_bytes: Most memory of a device.
        most: Layouts to find.
        patience: Seconds after which no further layout is rehearsed.
    """
    began = time.monotonic()
    paced = [(pace_of(config, work, rates), config) for config in candidates]
    paced.sort(key=lambda found: (found[0].seconds, len(found[1])))
    fitting: list[Planned] = []
    over: list[Planned] = []
    failed: dict[str, None] = {}
    rehearsed = passed = 0
    for pace, config in paced:
        if len(fitting) >= most or time.monotonic() - began > patience:
            break
        alone = least_bytes(config, work)
        if alone > limit_bytes or any(holds_as_much(config, other.config) for other in over):
            passed += 1
            continue
        try:
            estimate = predict(config)
        except AutotuneError as error:
            failed[error.message] = None
            continue
        rehearsed += 1
        planned = Planned(config=config, pace=pace, estimate=estimate)
        (fitting if estimate.predicted_bytes <= limit_bytes else over).append(planned)
    if not fitting and not over and paced:  # say at least what the leanest would need
        least, config = min(paced, key=lambda p: least_bytes(p[1], work))
        try:
            over.append(Planned(config=config, pace=least, estimate=predict(config)))
            rehearsed += 1
        except AutotuneError as error:
            failed[error.message] = None
    return Layouts(
        fitting=tuple(fitting),
        legal=len(candidates),
        rehearsed=rehearsed,
        refused=len(over),
        passed=passed,
        failed=tuple(failed),
        leanest=min(over, key=lambda p: p.estimate.predicted_bytes, default=None),
        seconds=time.monotonic() - began,
        rates=rates.source,
    )
