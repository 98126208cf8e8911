"""Layers that compute with rounded weights while the weights themselves train unrounded.

The rounded weight is the one that packing would give (`knobs/packed_formats.py`), and the gradient
passes the rounding as if it were not there. It exists for the moment of a product only: backward
rounds again, so between forward and backward a layer keeps what a dense one does.

References:
    Bengio et al. 2013, arXiv:1308.3432 (the straight-through estimator);
    Jacob et al. 2017, arXiv:1712.05877 (training with rounded weights).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from autotune.knobs.blocks import dense_weight, find_linears, is_dense
from autotune.knobs.dense import product_dtype
from autotune.knobs.packed import grid_of, pack_blocks, refuse_leftovers
from autotune.knobs.packed_formats import Grid, from_integers, group_size, to_integers
from autotune.knobs.packed_product import autocast_dtype, without_autocast

if TYPE_CHECKING:
    from torch import Tensor


def round_weight(weight: Tensor, grid: Grid, dtype: torch.dtype) -> Tensor:
    """Return the matrix `(out, in)` that packing `weight` on a grid of integers would give."""
    groups = weight.reshape(-1, group_size(weight.shape[1], grid.group))
    return from_integers(*to_integers(groups, grid.bits), dtype).view(weight.shape)


class FakeQuantLinear(nn.Linear):
    """A linear layer that multiplies by its rounded weight."""

    grid: Grid

    def forward(self, x: Tensor) -> Tensor:
        """Return `x @ rounded.T + bias`, shape `(..., out)`."""
        return _multiply(self, x, self.grid)


class FakeQuantConv1D(Conv1D):
    """GPT-2's transposed layer, multiplying by its rounded weight."""

    grid: Grid

    def forward(self, x: Tensor) -> Tensor:
        """Return `x @ rounded + bias`, shape `(..., out)`."""
        return _multiply(self, x, self.grid)


_KINDS: dict[type[nn.Module], type[FakeQuantLinear | FakeQuantConv1D]] = {
    nn.Linear: FakeQuantLinear,
    Conv1D: FakeQuantConv1D,
}
_DENSE = {fake: dense for dense, fake in _KINDS.items()}


def fake_quantise_blocks(model: nn.Module, bits: int) -> nn.Module:
    """Have every linear layer of the blocks compute with weights rounded to `bits` bits.

    Layers change their class and nothing else: parameters, names and hooks stay.

    Raises:
        ModelError: If the model's blocks cannot be found, hold much of their weights in layers of
            another kind, or the chosen groups do not divide a row.
    """
    grid = grid_of(model, bits)
    for layer in find_linears(model).values():
        if is_dense(layer) and type(layer) in _KINDS:
            group_size(dense_weight(layer).shape[1], grid.group)
            layer.__class__ = _KINDS[type(layer)]
            layer.grid = grid  # type: ignore[assignment]  # of the new class
    refuse_leftovers(model, list(filter(_is_fake, model.modules())), bits, "qat.bits")
    return model


def bake(model: nn.Module, bits: int) -> nn.Module:
    """Replace the layers that computed with rounded weights by packed ones that hold them."""
    for layer in filter(_is_fake, model.modules()):
        layer.__class__ = _DENSE[type(layer)]  # type: ignore[assignment]  # back to what it was
        del layer.grid
    return pack_blocks(model, bits, knob="qat.bits")


def _is_fake(module: nn.Module) -> TypeGuard[FakeQuantLinear | FakeQuantConv1D]:
    return type(module) in _DENSE


def _multiply(layer: nn.Linear | Conv1D, x: Tensor, grid: Grid) -> Tensor:
    x = x.to(autocast_dtype(x))
    with without_autocast(x.device.type):
        out: Tensor = _RoundedProduct.apply(x, dense_weight(layer), layer.bias, grid)  # type: ignore[no-untyped-call]  # untyped there
    return out


class _RoundedProduct(torch.autograd.Function):
    """`x @ rounded.T + bias`; keeps the input and the unrounded weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, grid: Grid) -> Tensor:
        # A frozen weight needs no input to be kept for its gradient.
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        ctx.grid, ctx.bias_dtype = grid, None if bias is None else bias.dtype
        dtype = product_dtype(x)
        wide_bias = None if bias is None else bias.to(dtype)
        rounded = round_weight(weight, grid, dtype)
        return functional.linear(x.to(dtype), rounded, wide_bias).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dtype = product_dtype(grad)
        wide = grad.to(dtype)
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = (wide @ round_weight(weight, ctx.grid, dtype)).to(grad.dtype)
        if ctx.needs_input_grad[1]:
            rows = wide.flatten(0, -2)
            grad_weight = (rows.t() @ x.flatten(0, -2).to(dtype)).to(weight.dtype)
        if ctx.needs_input_grad[2]:
            grad_bias = wide.flatten(0, -2).sum(0).to(ctx.bias_dtype)
        return grad_x, grad_weight, grad_bias, None
