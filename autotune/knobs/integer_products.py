"""Products of 8-bit weights and 8-bit inputs, summed in whole numbers.

The input of a layer is rounded to int8, with one scale for each token, and multiplied by the codes
of a packed weight as they are; scales are applied to the sums. Within a group of weights,

    sum_k x[k] * w[k]  =  scale_x * (scale_w * sum_k i[k] * c[k]  +  zero_w * sum_k i[k])

where `i` are the input's integers and `c` the weight's codes, so the weight has the same values as
in `knobs/packed.py`, and is never rebuilt.

References:
    Dettmers et al. 2022, arXiv:2208.07339 (a scale for each token);
    Yao et al. 2022, arXiv:2206.01861 (8 bits for both, without calibration).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import nn
from torch.nn import functional

from autotune.core.errors import ModelError
from autotune.knobs.packed import PackedLinear, is_packed
from autotune.knobs.packed_experts import PackedMatrices
from autotune.knobs.packed_product import autocast_dtype, without_autocast

if TYPE_CHECKING:
    from torch import Tensor

BITS = 8
_TOP = 127
_MIDDLE = 128
"""Codes from 0 to 255 become int8 by subtracting this."""

_FEWEST_ROWS = 17
"""Rows that the kernel of CUDA asks for at least."""


class IntegerLinear(PackedLinear):
    """A packed layer of 8-bit integers whose inputs are rounded to 8 bits too; for inference."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the product with the rounded input, plus bias, shape `(..., out)`.

        Raises:
            RuntimeError: If a gradient would be asked of it, which rounded inputs do not have.
        """
        if torch.is_grad_enabled() and x.requires_grad:
            raise RuntimeError("inputs rounded to integers have no gradient: use torch.no_grad()")
        with without_autocast(x.device.type):  # sums of integers do not fit 16 bits
            values, scale = round_tokens(x.flatten(0, -2))
            out = self._sums(values).mul_(scale)
            if self.bias is not None:
                out += self.bias
        return out.to(autocast_dtype(x)).view(*x.shape[:-1], self.out_features)

    def _sums(self, values: Tensor) -> Tensor:
        """Return the product of integers `(rows, in)` and the weight, in fp32 `(rows, out)`."""
        out = torch.zeros(len(values), self.out_features, device=values.device)
        scale = self.scale.float().view(self.out_features, -1)
        zero = self._zeros().float().view(self.out_features, -1) + _MIDDLE * scale
        codes = self.codes[: self.out_features * self.in_features]
        group = self.in_features // scale.shape[1]
        grouped = codes.view(self.out_features, -1, group)
        for place, part in enumerate(values.split(group, dim=1)):
            signed = (grouped[:, place] ^ _MIDDLE).view(torch.int8)
            out.addcmul_(multiply_integers(part, signed).float(), scale[:, place])
            out.addr_(part.sum(1, dtype=torch.int32).float(), zero[:, place])
        return out

    def _zeros(self) -> Tensor:
        if self.zero is None:
            raise ModelError(
                f"{self.grid.format} weights are no integers and cannot be summed as such",
                help="set deploy.activation_bits to 16",
            )
        return self.zero


def round_tokens(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Round each row to int8 between -127 and 127, with one scale in fp32, `(rows, 1)`."""
    wide = rows.float()
    scale = wide.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny) / _TOP
    return (wide / scale).round_().clamp_(-_TOP, _TOP).to(torch.int8), scale


def multiply_integers(a: Tensor, b: Tensor) -> Tensor:
    """Return `a @ b.T` of two int8 matrices, exactly, in int32 or a float that holds it.

    The kernel for integers is taken where there is one that is fast and takes the shapes: on CUDA,
    with more than 16 rows and widths that 8 divides; on a CPU, with the instructions for it.
    Elsewhere the integers are multiplied as floats wide enough to hold every sum, so the numbers
    are the same.

    Args:
        a: `(rows, width)`.
        b: `(out, width)`.

    Returns:
        `(rows, out)`.
    """
    if has_kernel(a, b):
        return torch._int_mm(a.contiguous(), b.t())
    exact = a.shape[1] * _TOP * _MIDDLE <= 2**24  # fp32 holds whole numbers up to here
    dtype = torch.float32 if exact else torch.float64
    return functional.linear(a.to(dtype), b.to(dtype))


def has_kernel(a: Tensor, b: Tensor) -> bool:
    """Whether `a @ b.T` of int8 matrices has a kernel of its own that is worth taking."""
    if a.device.type == "cpu":
        return bool(torch.cpu._is_vnni_supported())
    return len(a) >= _FEWEST_ROWS and a.shape[1] % 8 == 0 and len(b) % 8 == 0


def round_inputs(model: nn.Module) -> nn.Module:
    """Have every packed layer of 8-bit integers round its input too.

    Raises:
        ModelError: If the model has no such layer, or packed experts, whose inputs would not be.
    """
    if any(isinstance(module, PackedMatrices) for module in model.modules()):
        raise ModelError(
            f"inputs of the experts of {type(model).__name__} cannot be rounded",
            help="set deploy.activation_bits to 16",
        )
    found = [module for module in model.modules() if _is_rounded(module)]
    if not found:
        raise ModelError(
            f"{type(model).__name__} has no layers of {BITS}-bit integers whose inputs could be "
            "rounded",
            help="set deploy.bits to 8, or deploy.activation_bits to 16",
        )
    for layer in found:
        layer.__class__ = IntegerLinear
    return model


def _is_rounded(module: nn.Module) -> TypeGuard[PackedLinear]:
    return is_packed(module) and module.grid.bits == BITS and module.grid.format == "integer"
