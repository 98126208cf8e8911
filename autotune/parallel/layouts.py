"""Every layout of a number of devices that is legal for a model and a batch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

from autotune.core.config import Config
from autotune.core.context import Context
from autotune.core.domains import Value
from autotune.core.knob import run_stage
from autotune.core.space import Space
from autotune.knobs import BUILTIN
from autotune.knobs.stages import LAYOUT, LayoutPlan
from autotune.parallel.pace import Work

LEANEST_DATA = ("zero3", "zero2", "zero1", "ddp")
"""Values of `layout.data`, the one that holds least first."""

LEANEST_CHECKPOINTING = ("full", "every_other", "none")

_FEWER = (
    *("prune", "weight_bits", "lora", "freeze", "qat", "optimizer.offload"),
    *("activation", "recompute", "sequence_length", "global_batch"),
)
"""Beginnings of the names of knobs with which less may be held."""

_COMPUTED_AGAIN = {"none": 0.0, "every_third": 1 / 3, "every_other": 1 / 2}
_MOMENTS = {"adamw": 2, "lion": 1}

_DATA = ("ddp", "zero1", "zero2", "zero3")


def legal_layouts(
    space: Space, context: Context, fixed: Mapping[str, Value], devices: int
) -> Iterator[Config]:
    """Yield configurations that use all devices and that no knob or rule stands against.

    Args:
        space: Has the rules.
        context: Devices, model and batch.
        fixed: What every configuration has; a layout knob in it is not varied.
        devices: Ranks of each.
    """
    choices = {
        name: (fixed[name],) if name in fixed else values
        for name, values in _choices(devices, space).items()
    }
    seen = set()
    for values in itertools.product(*choices.values()):
        config = Config(
            {**fixed, "layout.ranks": devices, **dict(zip(choices, values, strict=True))},
            space.knobs,
        )
        if config not in seen and not space.reasons(config, context):
            seen.add(config)
            yield config


def holds_as_much(config: Config, other: Config) -> bool:
    """Whether each choice of `config` keeps at least as much on a rank as that of `other`.

    Then, if `other` does not fit, `config` does not. Only choices whose direction is beyond doubt
    are compared; all else must be equal.
    """
    compared = ("layout.tensor", "layout.data", "checkpointing", "accumulation")
    rest = {name for name in (*config, *other) if name not in compared}
    if any(config.get(name) != other.get(name) for name in rest):
        return False
    return (
        int(config.get("layout.tensor", 1)) <= int(other.get("layout.tensor", 1))
        and _place(LEANEST_DATA, config, "layout.data", "ddp")
        >= _place(LEANEST_DATA, other, "layout.data", "ddp")
        and _place(LEANEST_CHECKPOINTING, config, "checkpointing", "none")
        >= _place(LEANEST_CHECKPOINTING, other, "checkpointing", "none")
        and _micro_batch(config) >= _micro_batch(other)
    )


def least_bytes(config: Config, work: Work) -> float:
    """Return what a device holds at least.

    Weights and optimizer states, that is, and beside them either what blocks keep for the backward
    pass or, at its end, all gradients. It spares rehearsals of what is far from fitting, and tells
    nothing of what fits: logits and whatever is not divided evenly come on top. Where fewer
    parameters, bits or activations may be held than is easily said, it is 0.

    Args:
        config: A configuration.
        work: What a step is, of the model before anything is pruned.
    """
    if any(name.startswith(_FEWER) for name in config):
        return 0.0
    layout = run_stage(LAYOUT, LayoutPlan(), BUILTIN, config)
    held = work.model.parameters / (layout.tensor * layout.pipeline)
    shards = layout.shards or layout.replicas
    precision = str(config.get("precision", "fp32"))
    weights = 2 if precision in ("bf16", "fp16") else 4
    moments = _MOMENTS.get(str(config.get("optimizer", "adamw")), 0)
    states = moments * int(config.get("optimizer.bits", 32)) / 8
    kept = _kept(config, work, layout) * (4 if precision in ("fp32", "tf32") else 2)
    if layout.data == "server":
        return kept  # of a worker; a server has no activations
    gradients = weights * held / {"ddp": 1, "zero1": 1}.get(layout.data, shards)
    return (
        max(kept, gradients)
        + weights * held / (shards if layout.data == "zero3" else 1)
        + states * held / {"ddp": 1, "zero1": layout.replicas}.get(layout.data, shards)
    )


def _kept(config: Config, work: Work, layout: LayoutPlan) -> float:
    """Return how many values of activations the blocks of a rank keep at least.

    A block keeps its input, and one that is not computed again what its norms, and the product
    inside of its feed-forward layer, are differentiated with.
    """
    model = work.model
    rows = work.global_batch / (layout.replicas * int(config.get("accumulation", 1)))
    again = _COMPUTED_AGAIN.get(str(config.get("checkpointing", "none")), 1.0)
    whole = 2 * model.hidden + 2 * model.ffn / layout.tensor
    each = again * model.hidden + (1.0 - again) * whole
    return model.layers / layout.pipeline * rows * work.tokens / layout.context * each


def _choices(devices: int, space: Space) -> dict[str, Sequence[Value]]:
    degrees = [n for n in (1, 2, 4, 8, 16, 32, 64) if n <= devices and devices % n == 0]
    domain = space.knob("accumulation").domain
    return {
        "layout.data": _DATA,
        "layout.shards": (0, *(n for n in (8,) if n < devices)),
        "layout.tensor": [n for n in degrees if n <= 8],
        "layout.pipeline": degrees,
        "layout.context": [n for n in degrees if n <= 8],
        "checkpointing": tuple(reversed(LEANEST_CHECKPOINTING)),
        "accumulation": tuple(domain.grid()),
    }


def _place(order: Sequence[str], config: Config, name: str, neutral: str) -> int:
    return order.index(str(config.get(name, neutral)))


def _micro_batch(config: Config) -> float:
    """Return sequences that a rank has at once, relative to the global batch."""
    inner = int(config.get("layout.tensor", 1)) * int(config.get("layout.pipeline", 1))
    replicas = int(config.get("layout.ranks", 1)) / inner / int(config.get("layout.context", 1))
    return 1.0 / (replicas * int(config.get("accumulation", 1)))
