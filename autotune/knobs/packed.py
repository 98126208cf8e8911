"""Frozen layers with weights of 2 to 8 bits, packed, that are differentiable in their input.

A weight is held as codes with a scale for each group (`knobs/packed_formats.py`): with integers in
groups of 64, `bits + 0.5` bits per weight. The dense weight exists only for the moment of a
product (`knobs/packed_product.py`): it is rebuilt in forward and again in backward, and nothing
dense is saved between them.

References:
    Dettmers et al. 2023, arXiv:2305.14314 (training adapters on frozen 4-bit weights).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from autotune.core.errors import ModelError
from autotune.knobs.blocks import (
    dense_weight,
    find_blocks,
    find_linears,
    is_dense,
    replace_module,
)
from autotune.knobs.packed_experts import PackedMatrices, pack_experts, unpack_experts
from autotune.knobs.packed_formats import Grid, Packed, dequantise, quantise
from autotune.knobs.packed_product import multiply_rebuilt

if TYPE_CHECKING:
    from torch import Tensor

MOST_LEFT = 0.1
"""Share of the block weights that may stay dense, such as a table of position biases."""

_GRID = "_packing_grid"


class PackedLinear(nn.Linear):
    """A frozen linear layer with a packed weight.

    `weight` has the shape, dtype and device of the dense weight, needs no memory, and is NaN in
    every place: what asks for its dtype is answered, and what tries to compute with it or to add to
    it (peft's own merge) fails loudly. `to_dense` gives the real one.

    Args:
        layer: The dense layer that is replaced; its bias is kept, frozen.
        grid: Values that the weight may take, or the width of integers in groups of 64.

    Raises:
        ValueError: If the width is not implemented.
        ModelError: If the groups of the grid do not divide a row.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None

    def __init__(self, layer: nn.Linear | Conv1D, grid: Grid | int) -> None:
        grid = Grid(bits=grid) if isinstance(grid, int) else grid
        nn.Module.__init__(self)
        weight = dense_weight(layer)
        self.out_features, self.in_features = weight.shape
        self.grid = grid
        self.dense_dtype = weight.dtype
        self.transposed = isinstance(layer, Conv1D)
        for name, tensor in quantise(weight, grid)._asdict().items():
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
        packed = Packed(self.codes, self.scale, self.zero)
        return dequantise(packed, self.grid, (self.out_features, self.in_features), dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x @ weight.T + bias`, shape `(..., out)`."""
        return multiply_rebuilt(x, self, self.bias)

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


def choose_grid(model: nn.Module, *, group: int | None = None, format: str | None = None) -> None:
    """Have the model's layers packed in groups of that size, or in that format, from now on.

    The choice is kept on the model, since knobs of other stages pack it too.
    """
    chosen = {"group": group, "format": format}
    known = vars(model).get(_GRID, {})
    vars(model)[_GRID] = known | {name: v for name, v in chosen.items() if v is not None}


def grid_of(model: nn.Module, bits: int) -> Grid:
    """Return the grid of `bits` bits that was chosen for a model."""
    return replace(Grid(bits=bits), **vars(model).get(_GRID, {}))


def pack_blocks(model: nn.Module, bits: int, *, knob: str = "weight_bits") -> nn.Module:
    """Pack every linear layer of the blocks, one after the other, each dense weight being freed.

    Experts that share one tensor are packed too, if they are written as transformers marks them.

    Args:
        model: Has the layers.
        bits: Width of a code; group and format are as chosen for the model.
        knob: Who wants it, for the error.

    Returns:
        The model.

    Raises:
        ModelError: If the model's blocks cannot be found, or hold much of their weights in layers
            of another kind (such as layers that are quantised already), which would stay as they
            are under a label that says otherwise.
    """
    grid = grid_of(model, bits)
    linears = find_linears(model)
    for name in list(linears):
        layer = linears.pop(name)
        if is_dense(layer):
            replace_module(model, name, PackedLinear(layer, grid))
    for _, block in find_blocks(model):
        pack_experts(block, grid)
    packed = [m for m in model.modules() if isinstance(m, PackedLinear | PackedMatrices)]
    refuse_leftovers(model, packed, bits, knob)
    return model


def refuse_leftovers(model: nn.Module, layers: Sequence[nn.Module], bits: int, knob: str) -> None:
    """Refuse a model whose blocks have many weights outside the layers that are quantised.

    Args:
        model: Has blocks.
        layers: Those that are quantised.
        bits: Width of a code.
        knob: Who wants it.

    Raises:
        ModelError: If more than `MOST_LEFT` of the weights are left.
    """
    inside = {id(parameter) for layer in layers for parameter in layer.parameters()}
    left = sum(
        parameter.numel()
        for _, block in find_blocks(model)
        for parameter in block.parameters()
        if parameter.ndim > 1 and id(parameter) not in inside
    )
    done = sum(
        layer.numel if isinstance(layer, PackedMatrices) else dense_weight(layer).numel()
        for layer in layers
    )
    if left > MOST_LEFT * (left + done):
        raise ModelError(
            f"{left / (left + done):.0%} of the block weights of {type(model).__name__} are not "
            f"in plain linear layers, so {bits} bits cannot be had for them",
            help=f"set {knob} to 16",
        )


def is_packed(module: nn.Module) -> TypeGuard[PackedLinear]:
    """Whether a layer is packed."""
    return isinstance(module, PackedLinear)


def unpack_model(model: nn.Module) -> nn.Module:
    """Make every packed layer dense again, also those under adapters; it could train again."""
    packed = [(n, m) for n, m in model.named_modules() if is_packed(m)]
    for name, layer in packed:
        replace_module(model, name, layer.to_dense().requires_grad_(True))
    unpack_experts(model)
    vars(model).pop(_GRID, None)
    return model
