"""Weights of 2 to 8 bits, packed: a frozen linear layer that is differentiable in its input.

Each group of 64 weights along the input axis is stored as unsigned integers of `bits` bits with one
scale and one zero point in fp16, that is `bits + 0.5` bits per weight, in plain torch operations
that run on CPU and CUDA alike. The dense weight exists only for the moment of a product: it is
rebuilt in forward and again in backward, and nothing dense is saved between them.

References:
    Dettmers et al. 2023, arXiv:2305.14314 (training adapters on frozen 4-bit weights).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from autotune.core.errors import ModelError
from autotune.knobs.blocks import (
    dense_weight,
    find_blocks,
    find_linears,
    is_dense,
    replace_module,
)
from autotune.knobs.dense import product_dtype

if TYPE_CHECKING:
    from torch import Tensor

WIDTHS = (2, 3, 4, 5, 6, 8)
GROUP = 64
_PER_WORD = 8

MOST_LEFT = 0.1
"""Share of the block weights that may stay dense, such as a table of position biases."""


class Packed(NamedTuple):
    """A quantised matrix: packed codes, and fp16 scale and zero point of each group."""

    codes: Tensor
    scale: Tensor
    zero: Tensor


def pack(values: Tensor, bits: int) -> Tensor:
    """Pack unsigned integers, eight of them into `bits` bytes, the first in the lowest bits.

    Args:
        values: uint8 below `2**bits`, in any shape; the last word is filled up with zeros.
        bits: Width of a value.

    Returns:
        uint8 of shape `(ceil(count / 8) * bits,)`.
    """
    flat = functional.pad(values.flatten(), (0, -values.numel() % _PER_WORD)).view(-1, _PER_WORD)
    words = torch.zeros(len(flat), dtype=torch.int64, device=flat.device)
    for place in range(_PER_WORD):
        words |= flat[:, place].to(torch.int64) << (place * bits)
    packed = torch.empty(len(flat), bits, dtype=torch.uint8, device=flat.device)
    for place in range(bits):
        packed[:, place] = (words >> (8 * place)) & 255
    return packed.flatten()


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """Return the first `count` values that `pack` packed, as uint8 of shape `(count,)`."""
    mask = (1 << bits) - 1
    if _PER_WORD % bits == 0:  # whole values in each byte: no wide words are needed
        shifts = torch.arange(0, 8, bits, device=packed.device, dtype=torch.uint8)
        return ((packed[:, None] >> shifts) & mask).flatten()[:count]
    words = torch.zeros(len(packed) // bits, dtype=torch.int64, device=packed.device)
    for place, column in enumerate(packed.view(-1, bits).unbind(1)):
        words |= column.to(torch.int64) << (8 * place)
    values = torch.empty(len(words), _PER_WORD, dtype=torch.uint8, device=packed.device)
    for place in range(_PER_WORD):
        values[:, place] = (words >> (place * bits)) & mask
    return values.flatten()[:count]


def group_size(width: int) -> int:
    """Return how many weights of a row of `width` share a scale: 64, or the part that divides."""
    shared = math.gcd(width, GROUP)
    return shared if shared >= 16 else width


def quantise(weight: Tensor, bits: int) -> Packed:
    """Quantise a matrix `(out, in)` to `bits` bits, asymmetric, each value to the nearest code."""
    groups = weight.detach().reshape(-1, group_size(weight.shape[1])).float()
    low, high = groups.aminmax(dim=1, keepdim=True)
    top = 2**bits - 1
    # Codes are chosen for the scale and the zero point as stored, so that rounding those to fp16
    # costs nothing; a constant group has no range, and any scale that is not zero will do.
    zero = low.half()
    scale = ((high - zero.float()) / top).clamp_min(2.0**-20).half()
    codes = ((groups - zero.float()) / scale.float()).round_().clamp_(0, top).to(torch.uint8)
    return Packed(pack(codes, bits), scale, zero)


class PackedLinear(nn.Linear):
    """A frozen linear layer with a packed weight.

    `weight` has the shape, dtype and device of the dense weight, needs no memory, and is NaN in
    every place: what asks for its dtype is answered, and what tries to compute with it or to add to
    it (peft's own merge) fails loudly. `to_dense` gives the real one.

    Args:
        layer: The dense layer that is replaced; its bias is kept, frozen.
        bits: Width of a code, one of `WIDTHS`.

    Raises:
        ValueError: If the width is not implemented.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor

    def __init__(self, layer: nn.Linear | Conv1D, bits: int) -> None:
        if bits not in WIDTHS:
            raise ValueError(f"widths are {WIDTHS}, but got {bits}")
        nn.Module.__init__(self)
        weight = dense_weight(layer)
        self.out_features, self.in_features = weight.shape
        self.bits = bits
        self.dense_dtype = weight.dtype
        self.transposed = isinstance(layer, Conv1D)
        for name, tensor in quantise(weight, bits)._asdict().items():
            self.register_buffer(name, tensor)
        self.bias = layer.bias
        if layer.bias is not None:
            layer.bias.requires_grad_(False)
        self.train(layer.training)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]  # a parameter in nn.Linear
        """A stand-in for the dense weight, NaN in every place."""
        nan = torch.full((), math.nan, dtype=self.dense_dtype, device=self.codes.device)
        return nan.expand(self.out_features, self.in_features)

    def dequantise(self, dtype: torch.dtype) -> Tensor:
        """Rebuild the dense weight `(out, in)`."""
        shape = (self.out_features, self.in_features)
        values = unpack(self.codes, self.bits, math.prod(shape)).view(len(self.scale), -1)
        return values.to(dtype).mul_(self.scale.to(dtype)).add_(self.zero.to(dtype)).view(shape)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x @ weight.T + bias`, shape `(..., out)`."""
        out: Tensor = _PackedProduct.apply(x, self)  # type: ignore[no-untyped-call]  # untyped there
        return out if self.bias is None else out + self.bias

    def to_dense(self) -> nn.Linear | Conv1D:
        """Return the layer as it was before packing, in kind and dtype, with the rounded weight."""
        weight = self.dequantise(torch.float32).to(self.dense_dtype)
        layer: nn.Linear | Conv1D
        with torch.device("meta"):  # shapes only: the parameters are put in below
            if self.transposed:
                layer = Conv1D(self.out_features, self.in_features)  # type: ignore[no-untyped-call]  # untyped there
            else:
                layer = nn.Linear(self.in_features, self.out_features)
        layer.weight = nn.Parameter(weight.t().contiguous() if self.transposed else weight)
        layer.bias = self.bias
        return layer.train(self.training)


class _PackedProduct(torch.autograd.Function):
    """`x @ weight.T`; keeps the packed layer only, which is there anyway."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: PackedLinear) -> Tensor:
        ctx.layer = layer
        dtype = product_dtype(x)
        return functional.linear(x.to(dtype), layer.dequantise(dtype)).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        dtype = product_dtype(grad)
        return (grad.to(dtype) @ ctx.layer.dequantise(dtype)).to(grad.dtype), None


def pack_blocks(model: nn.Module, bits: int) -> nn.Module:
    """Pack every linear layer of the blocks, one after the other, each dense weight being freed.

    Raises:
        ModelError: If the model's blocks cannot be found, or hold much of their weights in layers
            of another kind (experts in one tensor, layers that are quantised already), which would
            stay as they are under a label that says otherwise.
    """
    linears = find_linears(model)
    for name in list(linears):
        layer = linears.pop(name)
        if is_dense(layer):
            replace_module(model, name, PackedLinear(layer, bits))
    left = sum(
        parameter.numel()
        for _, block in find_blocks(model)
        for parameter in block.parameters()
        if parameter.ndim > 1
    )
    packed = sum(m.in_features * m.out_features for m in model.modules() if _is_packed(m))
    if left > MOST_LEFT * (left + packed):
        raise ModelError(
            f"{left / (left + packed):.0%} of the block weights of {type(model).__name__} are not "
            f"in plain linear layers, so {bits} bits cannot be had for them",
            help="set weight_bits to 16",
        )
    return model


def _is_packed(module: nn.Module) -> TypeGuard[PackedLinear]:
    return isinstance(module, PackedLinear)


def unpack_model(model: nn.Module) -> nn.Module:
    """Make every packed layer dense again, also those under adapters."""
    packed = [(n, m) for n, m in model.named_modules() if isinstance(m, PackedLinear)]
    for name, layer in packed:
        replace_module(model, name, layer.to_dense())
    return model
