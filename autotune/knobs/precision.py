"""The dtype of weights, gradients and activations: fp32 or bf16.

bf16 halves all three. Optimizer states stay as `optimizer.bits` says, and updates are rounded
stochastically (`knobs/optimizers.py`), since weights near 1, such as those of norms, would
otherwise never move. On a CPU without bf16 instructions the dense layers compute in fp32
(`knobs/dense.py`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from autotune.core.context import Context
from autotune.core.domains import Choice
from autotune.core.knob import Knob, Numerics
from autotune.knobs.stages import DEPLOY, LOAD, PARALLELISE, LoadPlan

if TYPE_CHECKING:
    from torch import nn

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


def _choose_dtype(plan: LoadPlan, value: str) -> LoadPlan:
    return replace(plan, dtype=DTYPES[value])


def _avoid_slow_products(model: nn.Module, value: str) -> nn.Module:
    from autotune.knobs.dense import widen_linears

    return widen_linears(model)


def _restore(model: nn.Module, value: str) -> nn.Module:
    from autotune.knobs.dense import restore_linears

    return restore_linears(model)


def _needs_ampere(value: str, context: Context) -> str | None:
    device = context.device
    if value == "fp32" or device.capability is None or device.capability >= (8, 0):
        return None
    major, minor = device.capability
    return (
        f"{device.name or device.label} has compute capability {major}.{minor}, and bf16 needs "
        "8.0: set precision to fp32"
    )


PRECISION = Knob(
    name="precision",
    help="The dtype of weights, gradients and activations; bf16 halves all three.",
    domain=Choice(("fp32", "bf16")),
    neutral="fp32",
    leanest="bf16",
    numerics=Numerics.CLOSE,
    transforms=(
        LOAD.do(_choose_dtype),
        PARALLELISE.do(_avoid_slow_products),
        DEPLOY.do(_restore),
    ),
    blocked=_needs_ampere,
    references=("Kalamkar et al. 2019, arXiv:1905.12322", "Zamirai et al. 2020, arXiv:2010.06192"),
)
