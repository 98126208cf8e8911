"""How many configurations of a space fit a budget: all of them rehearsed, or a sample.

Legal configurations are taken in an order that is drawn by a seed, so that wherever the survey
ends, at the end of the space, after enough of them or when its time is up, it has seen a fair
sample. Of a sample, the share that fits has an interval. A space too large to enumerate is drawn
from: values of every knob alike, and what is illegal or known is drawn again.

References:
    Wilson, Probable inference, the law of succession, and statistical inference, 1927.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from statistics import NormalDist, median

from autotune.core.config import Config
from autotune.core.context import Context
from autotune.core.errors import AutotuneError
from autotune.core.space import Space

MOST_REHEARSED = 300
"""Configurations after which the share is known to within six points."""

SURVEY_SECONDS = 120.0
"""Time after which no further configuration is rehearsed."""

COVERAGE = 0.95
"""Confidence of the interval of a share."""

MOST_ENUMERATED = 5_000
"""Combinations up to which a space is enumerated; a larger one is drawn from."""

MOST_DRAWS = 20_000
"""Draws in a row that are illegal or known, after which nothing more is looked for."""

SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What was found out about a space under a limit.

    Attributes:
        limit_bytes: What a configuration has to fit.
        legal: Number of legal configurations; None if the space is too large to enumerate here.
        needs: Predicted peaks of those that were rehearsed, in bytes.
        unknown: How many could not be rehearsed.
        seconds: How long it took.
    """

    limit_bytes: int
    legal: int | None
    needs: tuple[int, ...]
    unknown: int
    seconds: float

    @property
    def fitting(self) -> int:
        """How many of those that were rehearsed fit."""
        return sum(need <= self.limit_bytes for need in self.needs)

    @property
    def complete(self) -> bool:
        """Whether every legal configuration was looked at, so that the share is no estimate."""
        return self.legal == len(self.needs) + self.unknown

    @property
    def share(self) -> float:
        """Share of those that were rehearsed that fit; 0 if none was."""
        return self.fitting / max(1, len(self.needs))

    @property
    def interval(self) -> tuple[float, float]:
        """Where the share of all that fit lies, with confidence `COVERAGE`."""
        if self.complete and not self.unknown:
            return self.share, self.share
        return wilson(self.fitting, len(self.needs))

    @property
    def spread(self) -> tuple[int, int, int]:
        """Least, median and greatest need, in bytes; zeros if none is known."""
        return min(self.needs), round(median(self.needs)), max(self.needs)


def survey(
    space: Space,
    context: Context,
    need: Callable[[Config], int],
    limit_bytes: int,
    *,
    seconds: float = SURVEY_SECONDS,
    say: Callable[[str], None] = lambda _: None,
) -> Survey:
    """Rehearse configurations of a space until the share that fits is known well enough.

    Args:
        space: The space.
        context: What legality is judged by.
        need: Returns the predicted peak of a configuration in bytes, or raises `AutotuneError`.
        limit_bytes: What a configuration has to fit.
        seconds: Most time for it.
        say: Told what is being done, as a sentence, every now and then.
    """
    legal, order = drawn(space, context, random.Random(SEED))
    began = time.monotonic()
    needs: list[int] = []
    unknown = 0
    for config in order:
        done = len(needs) + unknown
        if done >= MOST_REHEARSED or (done > 1 and time.monotonic() - began > seconds):
            break
        if done == 1:
            began = time.monotonic()  # the first one has also waited for imports
        if done and done % 25 == 0:
            say(f"{done} configurations rehearsed")
        try:
            needs.append(need(config))
        except AutotuneError:
            unknown += 1
    return Survey(
        limit_bytes=limit_bytes,
        legal=legal,
        needs=tuple(needs),
        unknown=unknown,
        seconds=round(time.monotonic() - began, 1),
    )


def drawn(
    space: Space, context: Context, rng: random.Random
) -> tuple[int | None, Iterable[Config]]:
    """Return how many legal configurations there are, if that can be said, and them at random."""
    if space.size is None or space.size > MOST_ENUMERATED:
        return None, _drawn_one_by_one(space, context, rng)
    legal = list(space.enumerate(context))
    rng.shuffle(legal)
    return len(legal), legal


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Return the ends of Wilson's interval for a share, with confidence `COVERAGE`."""
    if trials == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + COVERAGE / 2)
    share, weight = successes / trials, z * z / trials
    centre = share + weight / 2
    width = z * math.sqrt(share * (1 - share) / trials + weight / (4 * trials))
    low, high = (centre - width) / (1 + weight), (centre + width) / (1 + weight)
    return max(0.0, low), min(1.0, high)


def _drawn_one_by_one(space: Space, context: Context, rng: random.Random) -> Iterator[Config]:
    grids = {name: domain.grid() for name, domain in space.domains.items()}
    known: set[Config] = set()
    illegal = 0
    while illegal < MOST_DRAWS:
        values = {name: rng.choice(grid) for name, grid in grids.items()}
        config = Config(values, space.knobs)
        if config in known or not space.legal(config, context):
            illegal += 1
            continue
        illegal = 0
        known.add(config)
        yield config
