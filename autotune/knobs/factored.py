"""Adafactor: the second moment of a matrix as the product of a row and a column.

As `torch.optim.Adafactor`, but for weights in 16 bits too. The rate is relative: the learning rate,
or less in the first steps, times the root mean square of the parameter.

References:
    Shazeer and Stern 2018, arXiv:1804.04235.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from autotune.knobs.rounded import Update


def adafactor(update: Update) -> None:
    """Update one weight and the factors of its second moment."""
    step, state = update.step, update.state
    wide, gradient, share = update.weight.float(), update.grad.float(), step**-0.8
    if wide.ndim >= 2:
        row = _average(state, "row", gradient.square().mean(-1, keepdim=True), share)
        column = _average(state, "column", gradient.square().mean(-2, keepdim=True), share)
        square = (row @ column).div_(row.mean(-2, keepdim=True).clamp_min_(1e-30))
    else:
        square = _average(state, "square", gradient.square(), share).clone()
    change = square.clamp_min_(1e-30).rsqrt_().mul_(gradient)
    change.div_(_rms(change).clamp_min_(1.0))
    change.mul_(_rms(wide).clamp_min_(1e-3) * min(update.group["lr"], step**-0.5))
    update.write(wide.sub_(change))


def _average(state: dict[str, Any], name: str, value: Tensor, share: float) -> Tensor:
    average: Tensor = state.setdefault(name, torch.zeros_like(value))
    average.lerp_(value, share)
    return average


def _rms(tensor: Tensor) -> Tensor:
    return tensor.square().mean().sqrt()
