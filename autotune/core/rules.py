"""Rules across knobs: what belongs to no single knob.

A rule holds or it does not; where it does not, its reason is the sentence a user reads. What one
knob knows by itself (a missing library, a width that does not divide) is `Knob.blocked`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from autotune.core.context import Context


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A condition on whole configurations.

    Attributes:
        name: How tests and screens call it.
        holds: Whether a configuration in its context obeys.
        reason: Why not, as a sentence that says what to set instead.
    """

    name: str
    holds: Callable[[Context], bool]
    reason: str


def _bits_need_adapters(context: Context) -> bool:
    return context.config.get("weight_bits", 16) == 16 or bool(context.config.get("lora.rank", 0))


def _no_padding_to_compare(context: Context) -> bool:
    distilled = context.config.get("distill", "none") != "none"
    return not (distilled and context.config.get("data.packing", "stream") == "documents")


RULES: tuple[Rule, ...] = (
    Rule(
        name="frozen-weights-train-adapters",
        holds=_bits_need_adapters,
        reason="quantised weights are frozen, so nothing in them would train: "
        "set lora.rank above 0, or weight_bits to 16",
    ),
    Rule(
        name="teachers-read-streams",
        holds=_no_padding_to_compare,
        reason="rows of single documents are padded, and a teacher's opinion of padding would "
        "count: set data.packing to stream, or distill to none",
    ),
)
"""The rules that every space obeys; a space file may add expressions of its own."""
