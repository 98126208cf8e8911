"""Products with a weight that is rebuilt for their moment: forward, and again in backward."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional

from autotune.knobs.dense import product_dtype

if TYPE_CHECKING:
    from torch import Tensor


class Rebuilt(Protocol):
    """Something frozen that a dense weight can be rebuilt from."""

    def dequantise(self, dtype: torch.dtype) -> Tensor:
        """Rebuild the dense weight `(out, in)`."""


def multiply_rebuilt(x: Tensor, source: Rebuilt, bias: Tensor | None) -> Tensor:
    """Return `x @ weight.T + bias`, differentiable in `x`, in the dtype that autocast asks for.

    Args:
        x: `(..., in)`.
        source: Gives the weight, twice; nothing dense is kept in between.
        bias: `(out,)` or None.

    Returns:
        `(..., out)`.
    """
    x = x.to(autocast_dtype(x))
    with without_autocast(x.device.type):
        out: Tensor = _RebuiltProduct.apply(x, source)  # type: ignore[no-untyped-call]  # untyped there
        return out if bias is None else out + bias.to(out.dtype)


def autocast_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype that a dense layer would compute in: that of autocast, or that of `x`."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if _casts(kind) else x.dtype


def without_autocast(kind: str) -> AbstractContextManager[object]:
    """Open a context in which tensors on that kind of device are computed in their own dtypes."""
    return torch.autocast(kind, enabled=False) if _casts(kind) else nullcontext()


def _casts(kind: str) -> bool:
    # Some devices, such as that of tensors without values, are not even to be asked.
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


class _RebuiltProduct(torch.autograd.Function):
    """`x @ weight.T`; keeps what the weight is rebuilt from, which is there anyway."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, source: Rebuilt) -> Tensor:
        ctx.source = source
        dtype = product_dtype(x)
        return functional.linear(x.to(dtype), source.dequantise(dtype)).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        dtype = product_dtype(grad)
        return (grad.to(dtype) @ ctx.source.dequantise(dtype)).to(grad.dtype), None
