"""Bits of the key/value cache, which a language model fills as it reads and generates.

The cache grows with every token and layer; at long contexts it outweighs the model. Only a trained
model that reads in pieces has one, so this is for `--purpose inference` with an objective that
evaluates in pieces (`knobs/packed_cache.py`).
"""

from __future__ import annotations

from dataclasses import replace

from autotune.core.context import Context
from autotune.core.domains import Choice
from autotune.core.knob import Knob, Numerics
from autotune.knobs.stages import EVALUATE, EvalPlan


def _choose(plan: EvalPlan, value: int) -> EvalPlan:
    return replace(plan, cache_bits=value)


def _needs_a_cache(value: int, context: Context) -> str | None:
    if value == 16 or (context.purpose == "inference" and "stream" in context.features):
        return None
    return (
        "the cache exists only when a trained model reads in pieces, which this trial does not: "
        "use space inference, or set cache_bits to 16"
    )


CACHE_BITS = Knob(
    name="cache_bits",
    help="Bits per value of the key/value cache that a trained model keeps while it reads or "
    "generates.",
    domain=Choice((16, 8, 4, 2)),
    neutral=16,
    leanest=2,
    label="{}-bit cache",
    numerics=Numerics.LOSSY,
    transforms=(EVALUATE.do(_choose),),
    blocked=_needs_a_cache,
    references=("Liu et al. 2024, arXiv:2402.02750",),
)
