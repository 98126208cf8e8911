"""Dense products of 16-bit tensors on processors without instructions for them.

There, a native bf16 or fp16 matrix product is far slower than an fp32 one: the library falls back
to a scalar loop. What 16 bits save is memory, so tensors stay as they are, and each layer is
multiplied in fp32 for the moment of its product: forward, and again in backward. Only 16-bit
tensors are saved.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from autotune.knobs.blocks import dense_weight, is_dense

if TYPE_CHECKING:
    from torch import Tensor


@cache
def cpu_has_bf16() -> bool:
    """Whether this processor multiplies bf16 matrices by instructions of its own."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@cache
def cpu_has_fp16() -> bool:
    """Whether this processor multiplies fp16 matrices by instructions of its own."""
    return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())


def product_dtype(tensor: Tensor) -> torch.dtype:
    """Return the dtype in which a product of this tensor is computed: its own, or fp32."""
    if tensor.device.type != "cpu":
        return tensor.dtype
    slow = (tensor.dtype is torch.bfloat16 and not cpu_has_bf16()) or (
        tensor.dtype is torch.float16 and not cpu_has_fp16()
    )
    return torch.float32 if slow else tensor.dtype


def multiply(a: Tensor, b: Tensor) -> Tensor:
    """Return `a @ b` in the dtype of `a`, computed in its `product_dtype`."""
    dtype = product_dtype(a)
    return (a.to(dtype) @ b.to(dtype)).to(a.dtype)


class WidenedLinear(torch.autograd.Function):
    """`x @ weight.T + bias` in fp32, with inputs, outputs and gradients in their own dtypes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Multiply in fp32.

        Args:
            ctx: What backward gets.
            x: `(..., in)`.
            weight: `(out, in)`.
            bias: `(out,)` or None.

        Returns:
            `(..., out)` in the dtype of `x`.
        """
        # A frozen weight needs no input to be kept for its gradient.
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        wide_bias = None if bias is None else bias.float()
        return functional.linear(x.float(), weight.float(), wide_bias).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of `x`, `weight` and `bias`, each in its own dtype."""
        x, weight = ctx.saved_tensors
        wide = grad.float()
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = (wide @ weight.float()).to(grad.dtype)
        if ctx.needs_input_grad[1]:
            rows = wide.flatten(0, -2)
            grad_weight = (rows.t() @ x.flatten(0, -2).float()).to(weight.dtype)
        if ctx.needs_input_grad[2]:
            grad_bias = wide.flatten(0, -2).sum(0).to(grad.dtype)
        return grad_x, grad_weight, grad_bias


def _forward(layer: nn.Module, x: Tensor) -> Tensor:
    bias: Tensor | None = layer.bias  # type: ignore[assignment]  # of a dense layer
    out: Tensor = WidenedLinear.apply(x, dense_weight(layer), bias)  # type: ignore[no-untyped-call]  # untyped there
    return out


def widen_linears(model: nn.Module) -> nn.Module:
    """Have dense layers with slow 16-bit weights compute in fp32; parameters stay as they are."""
    for module in model.modules():
        if is_dense(module) and product_dtype(dense_weight(module)) is not module.weight.dtype:
            replaced: Callable[[Tensor], Tensor] = partial(_forward, module)
            vars(module)["forward"] = replaced
    return model


def restore_linears(model: nn.Module) -> nn.Module:
    """Undo `widen_linears`, so that the model is as transformers built it."""
    for module in model.modules():
        if is_dense(module):
            vars(module).pop("forward", None)
    return model
