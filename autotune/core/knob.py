"""The one abstraction: a knob is a domain plus transforms pinned to typed stages.

A trial has moments (`knobs/stages.py`) at which something new exists and may be changed. A knob
pins a function to one or more of them; running a stage folds the functions of every knob that is
off neutral over the state of that stage. Everything else about a knob is data.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from autotune.core.context import Context
from autotune.core.domains import Domain, Value

S = TypeVar("S")


class Numerics(enum.Enum):
    """What a knob may do to the numbers, stated by its author and checked by contract tests."""

    EXACT = "same loss, to rounding"
    CLOSE = "same training dynamics, other rounding"
    LOSSY = "another model or another optimum"


@dataclass(frozen=True, slots=True)
class Bound:
    """A function that takes part in one stage: `apply(state, value) -> state`."""

    stage: Stage[Any]
    apply: Callable[[Any, Any], Any]


@dataclass(frozen=True, slots=True)
class Stage(Generic[S]):
    """A moment in a trial's life; `S` is what exists by then and may be changed."""

    order: int
    name: str

    def do(self, apply: Callable[[S, Any], S]) -> Bound:
        """Pin `apply` to this stage. The type checker rejects a function of another stage."""
        return Bound(self, apply)


def never_blocked(value: Value, context: Context) -> str | None:
    """Say that nothing stands against any value: the default of `Knob.blocked`."""
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Knob:
    """Something that may be varied.

    Attributes:
        name: How search spaces and the command line spell it.
        help: What it does and when to use it, in one sentence.
        domain: Every value that the transforms implement; a space may only narrow it.
        neutral: The value that changes nothing. All-neutral is the baseline.
        leanest: The value that is expected to need the least memory.
        label: How a value that is off neutral prints, with `{}` for the value: `"ckpt {}"`.
        numerics: What the knob may do to the numbers.
        transforms: At most one function per stage.
        blocked: The reason, as a sentence, why a value cannot be used in a context; else None.
        references: Papers and documentation.

    Raises:
        ValueError: If neutral or leanest is outside the domain, or a stage is used twice.
    """

    name: str
    help: str
    domain: Domain
    neutral: Value
    leanest: Value
    label: str = "{}"
    numerics: Numerics
    transforms: tuple[Bound, ...]
    blocked: Callable[[Any, Context], str | None] = never_blocked
    references: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for role, value in (("neutral", self.neutral), ("leanest", self.leanest)):
            if value not in self.domain:
                raise ValueError(
                    f"{role} value {value!r} of knob {self.name!r} is not in its domain"
                )
        stages = [bound.stage.name for bound in self.transforms]
        if len(set(stages)) != len(stages):
            raise ValueError(f"knob {self.name!r} uses a stage twice: {stages}")

    def show(self, value: Value) -> str:
        """Print a value the way configurations are shown: `ckpt full`."""
        return self.label.format(f"{value:g}" if isinstance(value, float) else value)


def run_stage(stage: Stage[S], state: S, knobs: Iterable[Knob], config: Mapping[str, Value]) -> S:
    """Fold every knob of `stage` that is off neutral over `state`, in the order of `knobs`.

    Args:
        stage: Which moment it is.
        state: What exists by then.
        knobs: All knobs, in order of application.
        config: Values by name; a knob that is missing is neutral.

    Returns:
        The state that the next stage starts from.
    """
    for knob in knobs:
        value = config.get(knob.name, knob.neutral)
        if value == knob.neutral:
            continue
        for bound in knob.transforms:
            if bound.stage == stage:
                state = bound.apply(state, value)
    return state
