"""The dtypes of a training: of weights, gradients and activations, or of products alone.

`bf16` and `fp16` halve all three. Optimizer states stay as `optimizer.bits` says, and updates are
rounded so that small ones count (`knobs/optimizers.py`). The mixed ones keep weights and gradients
in fp32 and compute under autocast, which halves most activations and makes a 16-bit copy of every
weight that is used. `tf32` changes no bytes: the products of fp32 tensors are computed from 19 bits
of each value. fp16 has few exponents, so losses are scaled (`knobs/scaling.py`).

On a CPU without instructions for a dtype the dense layers compute in fp32 (`knobs/dense.py`).
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from autotune.core.context import Context
from autotune.core.domains import Choice
from autotune.core.knob import Knob, Numerics
from autotune.knobs.stages import (
    DEPLOY,
    EVALUATE,
    LOAD,
    PARALLELISE,
    STEP,
    EvalPlan,
    LoadPlan,
    StepPlan,
)

if TYPE_CHECKING:
    import torch
    from torch import nn

Plan = TypeVar("Plan", StepPlan, EvalPlan)


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """What one value means.

    Attributes:
        weights: Name of the torch dtype of weights and gradients.
        autocast: Name of the torch dtype that products are computed in; None for that of weights.
        scaled: Whether gradients would vanish without loss scaling.
        capability: CUDA compute capability that it needs; None if any will do.
    """

    weights: str = "float32"
    autocast: str | None = None
    scaled: bool = False
    capability: tuple[int, int] | None = None


PRECISIONS = {
    "fp32": Precision(),
    "tf32": Precision(capability=(8, 0)),
    "bf16_mixed": Precision(autocast="bfloat16", capability=(8, 0)),
    "fp16_mixed": Precision(autocast="float16", scaled=True),
    "bf16": Precision(weights="bfloat16", capability=(8, 0)),
    "fp16": Precision(weights="float16", scaled=True),
}


def _choose_dtype(plan: LoadPlan, value: str) -> LoadPlan:
    return replace(plan, dtype=PRECISIONS[value].weights)


def _choose_products(model: nn.Module, value: str) -> nn.Module:
    import torch

    from autotune.knobs.dense import widen_linears

    if value == "tf32":
        torch.set_float32_matmul_precision("high")
    return widen_linears(model)


def _restore(model: nn.Module, value: str) -> nn.Module:
    import torch

    from autotune.knobs.dense import restore_linears

    if value == "tf32":
        torch.set_float32_matmul_precision("highest")
    return restore_linears(model)


def _compute_training(plan: StepPlan, value: str) -> StepPlan:
    return replace(_autocast(plan, value), loss_scaling=PRECISIONS[value].scaled)


def _autocast(plan: Plan, value: str) -> Plan:
    name = PRECISIONS[value].autocast
    if name is None:
        return plan

    def narrow(device: torch.device) -> AbstractContextManager[Any]:
        import torch

        return torch.autocast(device.type, dtype=getattr(torch, name))

    return replace(plan, around_forward=(*plan.around_forward, narrow))


def _needs_instructions(value: str, context: Context) -> str | None:
    device, wanted = context.device, PRECISIONS[value]
    if device.kind == "cpu":
        if value == "tf32":
            return "tf32 is a mode of CUDA's tensor cores: set precision to fp32 or bf16"
        if wanted.autocast and not device.bf16:
            return (
                "this CPU has no instructions for products in 16 bits, which autocast would "
                "compute many times slower than in fp32: set precision to fp32 or bf16"
            )
        return None
    have, need = device.capability, wanted.capability
    if have is None or need is None or have >= need:
        return None
    return (
        f"{device.name or device.label} has compute capability {have[0]}.{have[1]}, and {value} "
        f"needs {need[0]}.{need[1]}: set precision to fp32 or fp16"
    )


PRECISION = Knob(
    name="precision",
    help="The dtype of weights, gradients and activations: bf16 and fp16 halve all three, the "
    "mixed ones halve most activations, and tf32 makes fp32 products faster.",
    domain=Choice(tuple(PRECISIONS)),
    neutral="fp32",
    leanest="bf16",
    numerics=Numerics.CLOSE,
    transforms=(
        LOAD.do(_choose_dtype),
        PARALLELISE.do(_choose_products),
        STEP.do(_compute_training),
        EVALUATE.do(_autocast),
        DEPLOY.do(_restore),
    ),
    blocked=_needs_instructions,
    references=(
        "Micikevicius et al. 2017, arXiv:1710.03740 (fp16, loss scaling)",
        "Kalamkar et al. 2019, arXiv:1905.12322",
        "Zamirai et al. 2020, arXiv:2010.06192",
    ),
)
