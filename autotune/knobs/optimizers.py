"""The optimizers behind the knobs, and their default learning rates.

Rates are relative to AdamW's, so that one number of the workload serves them all. Adapters take a
higher one, as in Schulman et al. 2025, LoRA Without Regret.

Where torch's own kernels do the job (AdamW and SGD on fp32 weights, fp32 gradients and fp32 states)
they are used. The rest is `knobs/rounded.py` with a method from this table for each parameter.
States are kept in fp32 also for bf16 weights, unless fewer bits are asked for. Two wrappers change
when and where an update happens, whatever it is: `knobs/in_backward.py` and `knobs/offloaded.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import Optimizer

from autotune.core.errors import BadValue, ModelError
from autotune.knobs.elementwise import adamw, lion, sgd
from autotune.knobs.factored import adafactor
from autotune.knobs.in_backward import InBackward
from autotune.knobs.low_rank import apollo, galore, rank_of
from autotune.knobs.muon import muon
from autotune.knobs.offloaded import Offloaded
from autotune.knobs.rounded import Method, Rounded

if TYPE_CHECKING:
    from torch import nn

    from autotune.knobs.stages import OptimPlan

BASE_RATE = 5e-5
"""Learning rate of AdamW for fine-tuning all weights of a pretrained model."""

Make = Callable[[list[dict[str, Any]]], Optimizer]
"""Makes an optimizer over parameter groups."""

Around = Callable[[Make, list[dict[str, Any]]], Optimizer]
"""Makes one that gives some of the groups to optimizers that it has made."""

METHODS: dict[str, Method] = {
    "adamw": adamw,
    "lion": lion,
    "sgd": sgd,
    "adafactor": adafactor,
    "muon": muon,
    "galore": galore,
    "apollo": apollo,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What is particular about an optimizer family.

    Attributes:
        rate: Default learning rate in units of AdamW's.
        decay: Weight decay; it acts times the rate, so it is higher where rates are lower.
        method: Key of `METHODS`.
        hidden: Another method for the matrices inside the blocks; empty for the same one.
        moments: Whether it keeps moments that fewer bits could shorten.
        adapters: Factor on the rate where adapters are trained. Ten for those that normalise
            updates; SGD's grow with the gradients, which are larger in adapters already.
    """

    rate: float
    decay: float
    method: str = "adamw"
    hidden: str = ""
    moments: bool = True
    adapters: float = 10.0


FAMILIES = {
    "adamw": Family(rate=1.0, decay=0.01),
    "lion": Family(rate=0.5, decay=0.02, method="lion"),
    # Adafactor's rate is relative to the root mean square of each tensor, about 0.03.
    "adafactor": Family(rate=20.0, decay=0.0, method="adafactor", moments=False),
    # Without momentum, which would cost as much memory as Lion's state: the leanest that trains.
    "sgd": Family(rate=1000.0, decay=0.0, method="sgd", moments=False, adapters=3.0),
    # The updates of the rest are scaled to the size of AdamW's, so they share its rate.
    "muon": Family(rate=1.0, decay=0.01, hidden="muon"),
    "galore": Family(rate=1.0, decay=0.01, hidden="galore"),
    "apollo": Family(rate=1.0, decay=0.01, hidden="apollo"),
}
"""Rate of each family: AdamW 5e-5, Lion 2.5e-5, Adafactor 1e-3, SGD 5e-2; more for adapters."""

TORCH_KINDS: dict[str, type[Optimizer]] = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}

KERNELS = {
    "fused": {"fused": True},
    "foreach": {"foreach": True},
    "loop": {"foreach": False, "fused": False},
}
"""What torch's optimizers are told, by the name of the kernel."""


def learning_rate(plan: OptimPlan, base_rate: float | None = None) -> float:
    """Return the learning rate of a plan.

    Args:
        plan: Family, factor, and whether adapters are trained.
        base_rate: What AdamW would take for full training; `BASE_RATE` if 0 or None.

    Raises:
        BadValue: If the family is unknown.
    """
    if plan.name not in FAMILIES:
        raise BadValue(f"'{plan.name}' is no optimizer", help=f"known: {', '.join(FAMILIES)}")
    rate = base_rate or BASE_RATE
    family = FAMILIES[plan.name]
    adapters = family.adapters if plan.adapters else 1.0
    return rate * family.rate * plan.rate_scale * adapters


def build_optimizer(
    parameters: Iterable[nn.Parameter],
    plan: OptimPlan,
    base_rate: float | None = None,
    model: nn.Module | None = None,
    around: Around | None = None,
) -> Optimizer:
    """Build the optimizer of a plan; matrices decay, vectors (biases, norms) do not.

    Args:
        parameters: Those of the model; the ones that need no gradient are left out.
        plan: Family, bits, factor on the rate, when and where to update.
        base_rate: As for `learning_rate`.
        model: Whose blocks hold the matrices that Muon, GaLore and APOLLO are for. Without it
            every matrix is taken for one of those, embeddings and the output layer too.
        around: Takes the place of making one optimizer over all groups.

    Raises:
        BadValue: If the family is unknown, or cannot do what the plan asks for.
        ModelError: If the family is for matrices inside blocks, and the model has no blocks.
    """
    rate = learning_rate(plan, base_rate)
    training = [parameter for parameter in parameters if parameter.requires_grad]
    groups = _groups(training, plan, model)
    make = partial(_make, plan=plan, rate=rate, by_torch=_torch_can(training, plan))
    if plan.gradient_dtype is not None:
        for parameter in training:
            parameter.grad_dtype = getattr(torch, plan.gradient_dtype)
    if around is not None:
        return around(make, groups)
    if plan.offload:
        return Offloaded(groups, make)
    return InBackward(make(groups)) if plan.in_backward else make(groups)


def _torch_can(training: list[nn.Parameter], plan: OptimPlan) -> bool:
    """Whether torch has a kernel for the plan; raise if the plan contradicts itself."""
    family = FAMILIES[plan.name]
    if plan.state_bits != 32 and not family.moments:
        raise BadValue(f"{plan.name} keeps no states that {plan.state_bits} bits could shorten")
    if plan.offload and plan.in_backward:
        raise BadValue("an update on the host cannot happen in the backward pass on the device")
    dtypes = {parameter.dtype for parameter in training}
    dtypes |= {getattr(torch, plan.gradient_dtype)} if plan.gradient_dtype else set()
    can = plan.name in TORCH_KINDS and plan.state_bits == 32 and dtypes <= {torch.float32}
    if plan.kernel != "fused" and not can:
        raise BadValue(
            f"torch has no {plan.kernel} kernel for {plan.name} in {plan.state_bits} bits on "
            f"{', '.join(sorted(map(str, dtypes)))}",
            help="set optimizer.kernel to fused",
        )
    return can


def _make(
    groups: list[dict[str, Any]], *, plan: OptimPlan, rate: float, by_torch: bool
) -> Optimizer:
    if by_torch:
        options: dict[str, Any] = {"lr": rate, **KERNELS[plan.kernel]}
        return TORCH_KINDS[plan.name](groups, **options)
    for group in groups:
        group.update(bits=plan.state_bits, rank=plan.rank)
    return Rounded(groups, lr=rate, methods=METHODS)


def _groups(
    training: list[nn.Parameter], plan: OptimPlan, model: nn.Module | None
) -> list[dict[str, Any]]:
    """Return parameter groups, none of them empty."""
    family = FAMILIES[plan.name]
    hidden = _hidden(training, plan, model) if family.hidden else set()
    kinds: dict[tuple[str, float], list[nn.Parameter]] = {
        (family.hidden, family.decay): [],
        (family.method, family.decay): [],
        (family.method, 0.0): [],
    }
    for parameter in training:
        method = family.hidden if id(parameter) in hidden else family.method
        kinds[method, family.decay if parameter.ndim >= 2 else 0.0].append(parameter)
    return [
        {"params": members, "weight_decay": decay, "method": method}
        for (method, decay), members in kinds.items()
        if members
    ]


def _hidden(training: list[nn.Parameter], plan: OptimPlan, model: nn.Module | None) -> set[int]:
    """Return the identities of the matrices that the family's own method is for."""
    inside = training if model is None else _inside_blocks(model, plan.name)
    matrices = [p for p in inside if p.ndim == 2 and min(p.shape) > 1]
    if plan.name == "muon":
        return {id(p) for p in matrices}
    # A projection that is no narrower than the matrix would cost more than AdamW's own states.
    return {id(p) for p in matrices if rank_of(p.shape, plan.rank) < min(p.shape)}


def _inside_blocks(model: nn.Module, name: str) -> list[nn.Parameter]:
    from autotune.knobs.blocks import find_blocks

    try:
        blocks = find_blocks(model)
    except ModelError as error:
        raise ModelError(
            f"{name} is for the matrices inside blocks, and {error.message}",
            help="set optimizer to adamw",
        ) from error
    return [parameter for _, block in blocks for parameter in block.parameters()]
