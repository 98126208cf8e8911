"""Values that only some objectives carry out, and the sentence where one does not."""

from __future__ import annotations

from collections.abc import Callable

from autotune.core.context import Context
from autotune.core.domains import Value


def needs_feature(
    word: str, *, neutral: Value, reason: str
) -> Callable[[Value, Context], str | None]:
    """Return a `Knob.blocked` for a knob whose other values are up to the objective.

    Args:
        word: What the objective must say that it carries out, in `WorkloadFacts.features`.
        neutral: The value that every objective carries out.
        reason: Why it may not, with what to set instead.
    """

    def blocked(value: Value, context: Context) -> str | None:
        unknown = not context.features and not context.model.family
        if value == neutral or unknown or word in context.features:
            return None
        return reason

    return blocked
