"""The global batch, as a factor on the workload's: sequences per optimizer step.

A smaller batch has fewer activations, like accumulation, but is another training: the sequences
stay as many, so more steps are made, each on a noisier gradient. The learning rate follows the
square root of the factor, which keeps the noise of the training alike: the rule of Malladi et al.
for optimizers that divide updates by their size (whose averages of moments, which they would change
too, stay as they are), and Krizhevsky's of equal variance for SGD. `learning_rate` comes on top.
"""

from __future__ import annotations

import math
from dataclasses import replace

from autotune.core.context import Context
from autotune.core.domains import Choice
from autotune.core.errors import BadValue
from autotune.core.knob import Knob, Numerics
from autotune.knobs.stages import DATA, OPTIMISE, DataPlan, OptimPlan


def effective_batch(context: Context) -> float:
    """Return the sequences per optimizer step of a configuration; not whole if it is blocked."""
    return context.global_batch * float(context.config.get("global_batch", 1.0))


def _scale_batch(plan: DataPlan, value: float) -> DataPlan:
    batch = plan.global_batch * value
    if not _is_whole(batch):
        raise BadValue(_refusal(value, plan.global_batch))
    return replace(plan, global_batch=round(batch))


def _scale_rate(plan: OptimPlan, value: float) -> OptimPlan:
    return replace(plan, rate_scale=plan.rate_scale * math.sqrt(value))


def _needs_whole_batch(value: float, context: Context) -> str | None:
    if value == 1.0 or _is_whole(context.global_batch * value):
        return None
    return _refusal(value, context.global_batch)


def _is_whole(batch: float) -> bool:
    return batch >= 1.0 and batch == round(batch)


def _refusal(value: float, batch: int) -> str:
    return (
        f"global_batch {value:g} of a batch of {batch} is {batch * value:g} sequences, and only "
        "whole ones can be trained on: set global_batch to 1.0, or take another batch"
    )


GLOBAL_BATCH = Knob(
    name="global_batch",
    help="Factor on the sequences per optimizer step, with as many more or fewer steps and the "
    "learning rate scaled by its square root; less memory below 1, at another optimum.",
    domain=Choice((0.25, 0.5, 1.0, 2.0, 4.0)),
    neutral=1.0,
    leanest=0.25,
    label="batch ×{}",
    numerics=Numerics.LOSSY,
    transforms=(DATA.do(_scale_batch), OPTIMISE.do(_scale_rate)),
    blocked=_needs_whole_batch,
    references=(
        "Malladi et al. 2022, arXiv:2205.10287 (adaptive optimizers)",
        "Krizhevsky 2014, arXiv:1404.5997 (SGD)",
    ),
)
