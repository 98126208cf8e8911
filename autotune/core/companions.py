"""What a value needs beside it to be legal: `weight_bits` 4 needs adapters, which need a rank.

The sentence that blocks a value names the knob to set instead, and so says where to look: the
knobs in it are tried, value by value, then those in the sentences that this gives, and no others.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from autotune.core.context import Context
from autotune.core.domains import Value
from autotune.core.knob import Knob
from autotune.core.rules import RULES, Rule

MOST_COMPANIONS = 2


def first_reason(
    values: Mapping[str, Value],
    knobs: Sequence[Knob],
    context: Context,
    rules: Sequence[Rule] = RULES,
) -> str | None:
    """Return the first sentence that stands against a configuration, or None.

    Args:
        values: By knob name; a knob that is missing is neutral.
        knobs: Every knob.
        context: Surroundings; its configuration is replaced.
        rules: Conditions on whole configurations.
    """
    complete = {knob.name: values.get(knob.name, knob.neutral) for knob in knobs}
    around = context.with_config(complete)
    for knob in knobs:
        if reason := knob.blocked(complete[knob.name], around):
            return reason
    return next((rule.reason for rule in rules if not rule.holds(around)), None)


def with_companions(
    values: Mapping[str, Value],
    knobs: Sequence[Knob],
    context: Context,
    rules: Sequence[Rule] = RULES,
) -> dict[str, Value] | None:
    """Return values with the fewest others that make them legal.

    Args:
        values: What is wanted, by knob name.
        knobs: Every knob.
        context: Surroundings.
        rules: Conditions on whole configurations.

    Returns:
        A legal configuration, or None if `MOST_COMPANIONS` others do not make it one.
    """
    waiting = [dict(values)]
    for _ in range(MOST_COMPANIONS + 1):
        further: list[dict[str, Value]] = []
        for candidate in waiting:
            reason = first_reason(candidate, knobs, context, rules)
            if reason is None:
                return candidate
            further.extend(_extended(candidate, reason, knobs))
        waiting = further
    return None


def _extended(
    values: Mapping[str, Value], reason: str, knobs: Sequence[Knob]
) -> Iterator[dict[str, Value]]:
    """Yield the values with one more, of a knob that the sentence names."""
    for knob in knobs:
        if knob.name in values or not re.search(rf"(?<![\w.]){re.escape(knob.name)}\b", reason):
            continue
        for value in knob.domain.grid():
            if value != knob.neutral:
                yield {**values, knob.name: value}
