"""The optimizers behind the knobs, and their default learning rates.

Rates are relative to AdamW's, so that one number of the workload serves them all; the factors were
chosen on the default workload, and adapters' as in Schulman et al. 2025, LoRA Without Regret.

Where torch's own fused kernels do the job (fp32 parameters, fp32 states) they are used. The rest is
here: parameters in bf16 and states in 8 bits. Each update is computed in fp32, piece by piece, so
that temporaries stay small, and is written back as `knobs/rounding.py` says. States are kept in
fp32 also for bf16 parameters, unless 8 bits are asked for: a bf16 average of squares could not
decay.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch.optim import Optimizer

from autotune.core.errors import BadValue
from autotune.knobs.rounding import load, new_states, round_stochastically, store

if TYPE_CHECKING:
    from torch import Tensor, nn

    from autotune.knobs.stages import OptimPlan

BASE_RATE = 5e-5
"""Learning rate of AdamW for fine-tuning all weights of a pretrained model."""

PIECE = {"cpu": 2**18, "cuda": 2**22}
"""Values updated at once: what fits a CPU's cache; enough to keep a GPU busy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What is particular about an optimizer family.

    Attributes:
        rate: Default learning rate in units of AdamW's.
        decay: Weight decay; it acts times the rate, so it is higher where rates are lower.
        moments: Names of its states, one value per parameter each.
        adapters: Factor on the rate where adapters are trained. Ten for those that normalise
            updates; SGD's grow with the gradients, which are larger in adapters already.
    """

    rate: float
    decay: float
    moments: tuple[str, ...]
    adapters: float = 10.0


FAMILIES = {
    "adamw": Family(rate=1.0, decay=0.01, moments=("mean", "square")),
    "lion": Family(rate=0.5, decay=0.02, moments=("mean",)),
    # Adafactor's rate is relative to the root mean square of each tensor, about 0.03.
    "adafactor": Family(rate=20.0, decay=0.0, moments=()),
    # Without momentum, which would cost as much memory as Lion's state: the leanest that trains.
    "sgd": Family(rate=1000.0, decay=0.0, moments=(), adapters=3.0),
}
"""Rate of each family: AdamW 5e-5, Lion 2.5e-5, Adafactor 1e-3, SGD 5e-2; more for adapters."""


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
    parameters: Iterable[nn.Parameter], plan: OptimPlan, base_rate: float | None = None
) -> Optimizer:
    """Build the optimizer of a plan; matrices decay, vectors (biases, norms) do not.

    Args:
        parameters: Those of the model; the ones that need no gradient are left out.
        plan: Family, bits, factor on the rate.
        base_rate: As for `learning_rate`.

    Raises:
        BadValue: If the family is unknown, or has no states to store in 8 bits.
    """
    rate = learning_rate(plan, base_rate)
    family = FAMILIES[plan.name]
    if plan.state_bits != 32 and not family.moments:
        raise BadValue(f"{plan.name} keeps no states that {plan.state_bits} bits could shorten")
    training = [parameter for parameter in parameters if parameter.requires_grad]
    matrices = [parameter for parameter in training if parameter.ndim >= 2]
    vectors = [parameter for parameter in training if parameter.ndim < 2]
    groups = [
        {"params": members, "weight_decay": decay}
        for members, decay in ((matrices, family.decay), (vectors, 0.0))
        if members
    ]
    wide = all(parameter.dtype is torch.float32 for parameter in training)
    if plan.name == "adamw" and wide and plan.state_bits == 32:
        return torch.optim.AdamW(groups, lr=rate, fused=True)
    if plan.name == "sgd" and wide:
        return torch.optim.SGD(groups, lr=rate, fused=True)
    if plan.name == "adafactor":
        return Adafactor(groups, lr=rate)
    return Elementwise(groups, lr=rate, family=plan.name, state_bits=plan.state_bits)


class _Rounded(Optimizer):
    """Common to the optimizers here: noise for rounding, and the walk over parameters.

    The noise has a generator of its own, so that dropout is the same whatever rounds. It is drawn
    once for a step and used for every piece: what matters is that it is new in the next step.
    """

    def __init__(self, groups: list[dict[str, Any]], defaults: dict[str, Any]) -> None:
        super().__init__(groups, defaults)
        self._generators: dict[torch.device, torch.Generator] = {}
        self._noise: dict[torch.device, Tensor] = {}

    def noise(self, device: torch.device) -> Tensor:
        """Return the noise of this step: uniform in [0, 1), one value for each of a piece."""
        if device not in self._noise:
            if device not in self._generators:
                self._generators[device] = torch.Generator(device).manual_seed(0)
            generator = self._generators[device]
            self._noise[device] = torch.rand(PIECE[device.type], generator=generator, device=device)
        return self._noise[device]

    def write(self, target: Tensor, value: Tensor) -> None:
        """Write fp32 values to a flat target of the same length, rounded without bias."""
        noise = self.noise(target.device)
        for new, old in zip(value.split(len(noise)), target.split(len(noise)), strict=True):
            round_stochastically(old, new, noise[: len(new)])

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # torch overloads by closure
        """Update every parameter that has a gradient.

        Args:
            closure: Computes loss and gradients first, as in every torch optimizer.

        Returns:
            What the closure returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    weight = parameter.contiguous()
                    self.update(weight, parameter.grad.contiguous(), self.state[parameter], group)
                    if weight is not parameter:
                        parameter.copy_(weight)
        self._noise.clear()
        return loss

    @abstractmethod
    def update(
        self, weight: Tensor, grad: Tensor, state: dict[str, Any], group: Mapping[str, Any]
    ) -> None:
        """Update one contiguous weight and its state in place."""


Rule: TypeAlias = "Callable[[Tensor, Tensor, Sequence[Tensor], Mapping[str, Any], int], None]"
"""Updates `(weight, gradient, moments, group, step)` in place; everything is fp32."""


def _adamw(
    weight: Tensor, grad: Tensor, moments: Sequence[Tensor], group: Mapping[str, Any], step: int
) -> None:
    mean, square = moments
    mean.lerp_(grad, 1 - 0.9)
    square.mul_(0.999).addcmul_(grad, grad, value=1 - 0.999)
    scale = (square / (1 - 0.999**step)).sqrt_().add_(1e-8)
    weight.mul_(1 - group["lr"] * group["weight_decay"])
    weight.addcdiv_(mean, scale, value=-group["lr"] / (1 - 0.9**step))


def _lion(
    weight: Tensor, grad: Tensor, moments: Sequence[Tensor], group: Mapping[str, Any], step: int
) -> None:
    (mean,) = moments
    weight.mul_(1 - group["lr"] * group["weight_decay"])
    weight.add_(mean.lerp(grad, 1 - 0.9).sign_(), alpha=-group["lr"])
    mean.lerp_(grad, 1 - 0.99)


def _sgd(
    weight: Tensor, grad: Tensor, moments: Sequence[Tensor], group: Mapping[str, Any], step: int
) -> None:
    weight.add_(grad, alpha=-group["lr"])


RULES: dict[str, Rule] = {"adamw": _adamw, "lion": _lion, "sgd": _sgd}


class Elementwise(_Rounded):
    """AdamW, Lion or SGD, for parameters in fp32 or bf16 and states in 32 or 8 bits.

    Args:
        groups: Parameter groups, each with its `weight_decay`.
        lr: Learning rate.
        family: Key of `RULES`.
        state_bits: 32 or 8.

    References:
        Loshchilov and Hutter 2017, arXiv:1711.05101; Chen et al. 2023, arXiv:2302.06675.
    """

    def __init__(
        self, groups: list[dict[str, Any]], *, lr: float, family: str, state_bits: int
    ) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0})
        self.rule, self.moments = RULES[family], FAMILIES[family].moments
        self.state_bits = state_bits

    def update(
        self, weight: Tensor, grad: Tensor, state: dict[str, Any], group: Mapping[str, Any]
    ) -> None:
        """Update one weight and its moments, piece by piece."""
        if not state:
            state["step"] = 0
            for name in self.moments:
                state.update(new_states(name, weight, self.state_bits))
        state["step"] += 1
        noise = self.noise(weight.device)
        weights, grads = weight.view(-1), grad.view(-1)
        for start in range(0, len(weights), len(noise)):
            part = slice(start, min(start + len(noise), len(weights)))
            wide = weights[part].float()
            moments = [load(state, name, part) for name in self.moments]
            self.rule(wide, grads[part].float(), moments, group, state["step"])
            for name, moment in zip(self.moments, moments, strict=True):
                store(state, name, part, moment, noise)
            self.write(weights[part], wide)


class Adafactor(_Rounded):
    """Adafactor: the second moment of a matrix as the product of a row and a column.

    As `torch.optim.Adafactor`, but for bf16 parameters too. The rate is relative: `lr`, or
    less in the first steps, times the root mean square of the parameter.

    Args:
        groups: Parameter groups.
        lr: Largest relative learning rate.

    References:
        Shazeer and Stern 2018, arXiv:1804.04235.
    """

    def __init__(self, groups: list[dict[str, Any]], *, lr: float) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0})

    def update(
        self, weight: Tensor, grad: Tensor, state: dict[str, Any], group: Mapping[str, Any]
    ) -> None:
        """Update one weight and the factors of its second moment."""
        state["step"] = step = state.get("step", 0) + 1
        wide, gradient, share = weight.float(), grad.float(), step**-0.8
        if weight.ndim >= 2:
            row = _average(state, "row", gradient.square().mean(-1, keepdim=True), share)
            column = _average(state, "column", gradient.square().mean(-2, keepdim=True), share)
            square = (row @ column).div_(row.mean(-2, keepdim=True).clamp_min_(1e-30))
        else:
            square = _average(state, "square", gradient.square(), share).clone()
        change = square.clamp_min_(1e-30).rsqrt_().mul_(gradient)
        change.div_(_rms(change).clamp_min_(1.0))
        change.mul_(_rms(wide).clamp_min_(1e-3) * min(group["lr"], step**-0.5))
        self.write(weight.view(-1), wide.sub_(change).view(-1))


def _average(state: dict[str, Any], name: str, value: Tensor, share: float) -> Tensor:
    average: Tensor = state.setdefault(name, torch.zeros_like(value))
    average.lerp_(value, share)
    return average


def _rms(tensor: Tensor) -> Tensor:
    return tensor.square().mean().sqrt()
