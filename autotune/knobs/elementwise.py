"""AdamW, Lion and SGD, which treat every value of a parameter alike.

Each is a rule on fp32 values, applied piece by piece, so that temporaries stay small.

References:
    AdamW: Loshchilov and Hutter 2017, arXiv:1711.05101; Lion: Chen et al. 2023, arXiv:2302.06675.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from autotune.knobs.rounded import Method, Update

Rule: TypeAlias = "Callable[[Tensor, Tensor, Sequence[Tensor], Mapping[str, Any], int], None]"
"""Updates `(weight, gradient, moments, group, step)` in place; everything is fp32."""

ADAM_MOMENTS = ("mean", "square")


def _adamw(
    weight: Tensor, grad: Tensor, moments: Sequence[Tensor], group: Mapping[str, Any], step: int
) -> None:
    mean, scale = _adam(grad, moments, step)
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


def _elementwise(rule: Rule, names: tuple[str, ...]) -> Method:
    def method(update: Update) -> None:
        weights, grads = update.weight.view(-1), update.grad.view(-1)
        for part, moments in update.moments(names, len(weights)):
            wide = weights[part].float()
            rule(wide, grads[part].float(), moments, update.group, update.step)
            update.write(wide, part)

    return method


adamw = _elementwise(_adamw, ADAM_MOMENTS)
lion = _elementwise(_lion, ("mean",))
sgd = _elementwise(_sgd, ())


def adam_direction(update: Update, grad: Tensor) -> Tensor:
    """Return where Adam goes by a gradient that stands for the parameter's own.

    Args:
        update: Its state keeps the moments.
        grad: fp32 of any shape, such as a projection.

    Returns:
        The bias-corrected mean over the root of the mean square, of the shape of `grad`.
    """
    flat, direction = grad.reshape(-1), torch.empty_like(grad).view(-1)
    for part, moments in update.moments(ADAM_MOMENTS, len(flat)):
        mean, scale = _adam(flat[part], moments, update.step)
        torch.div(mean, scale, out=direction[part])
    return direction.div_(1 - 0.9**update.step).view_as(grad)


def _adam(grad: Tensor, moments: Sequence[Tensor], step: int) -> tuple[Tensor, Tensor]:
    mean, square = moments
    mean.lerp_(grad, 1 - 0.9)
    square.mul_(0.999).addcmul_(grad, grad, value=1 - 0.999)
    return mean, (square / (1 - 0.999**step)).sqrt_().add_(1e-8)
