"""Packed experts: layers of a mixture, which transformers keeps in one tensor of three dimensions.

Each expert's matrix is packed on its own, and rebuilt for the tokens that were sent to it. The
experts become one loop over those that got any, whatever kernel the model was built with: kernels
for all experts at once would need all of them dense.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from autotune.knobs.packed_formats import Grid, Packed, dequantise, quantise
from autotune.knobs.packed_product import multiply_rebuilt

if TYPE_CHECKING:
    from torch import Tensor

_UP = ("gate_up_proj", "up_proj")
_DOWN = "down_proj"


class PackedMatrices(nn.Module):
    """Frozen matrices of one shape, packed one by one.

    Args:
        weight: `(count, out, in)`, or `(count, in, out)` if `transposed`.
        grid: Values that a weight may take.
        transposed: Which of the two it is.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None

    def __init__(self, weight: Tensor, grid: Grid, *, transposed: bool) -> None:
        super().__init__()
        self.grid = grid
        self.transposed = transposed
        self.dense_dtype = weight.dtype
        self.numel = weight.numel()
        matrices = [matrix.t() if transposed else matrix for matrix in weight.detach()]
        self.shape = (matrices[0].shape[0], matrices[0].shape[1])
        packed = [quantise(matrix, grid) for matrix in matrices]
        for name, parts in zip(Packed._fields, zip(*packed, strict=True), strict=True):
            self.register_buffer(name, None if parts[0] is None else torch.stack(parts))

    def dequantise(self, index: int, dtype: torch.dtype) -> Tensor:
        """Rebuild the matrix at `index`, `(out, in)`."""
        zero = None if self.zero is None else self.zero[index]
        packed = Packed(self.codes[index], self.scale[index], zero)
        return dequantise(packed, self.grid, self.shape, dtype)

    def forward(self, x: Tensor, index: int) -> Tensor:
        """Return the product of `x`, `(..., in)`, and the matrix at `index`."""
        return multiply_rebuilt(x, _Matrix(self, index), None)

    def to_dense(self) -> nn.Parameter:
        """Return all of them as they were before packing, in shape and dtype, rounded."""
        matrices = []
        for index in range(len(self.codes)):
            matrix = self.dequantise(index, torch.float32).to(self.dense_dtype)
            matrices.append(matrix.t() if self.transposed else matrix)
        return nn.Parameter(torch.stack(matrices))


@dataclass(frozen=True, slots=True)
class _Matrix:
    """One of many."""

    many: PackedMatrices
    index: int

    def dequantise(self, dtype: torch.dtype) -> Tensor:
        return self.many.dequantise(self.index, dtype)


def pack_experts(block: nn.Module, grid: Grid) -> None:
    """Pack the experts inside a block that are written the way transformers marks them."""
    for experts in list(filter(_are_experts, block.modules())):
        for name in (*_UP, _DOWN):
            weight = getattr(experts, name, None)
            if isinstance(weight, nn.Parameter):
                delattr(experts, name)
                packed = PackedMatrices(weight, grid, transposed=bool(experts.is_transposed))
                experts.register_module(name, packed)
                del weight
        for parameter in experts.parameters():
            parameter.requires_grad_(False)
        vars(experts)["forward"] = partial(_forward, experts)


def unpack_experts(model: nn.Module) -> None:
    """Make packed experts dense again, as transformers built them."""
    for experts in model.modules():
        packed = [(n, m) for n, m in experts.named_children() if isinstance(m, PackedMatrices)]
        for name, matrices in packed:
            delattr(experts, name)
            experts.register_parameter(name, matrices.to_dense())
            vars(experts).pop("forward", None)


def _are_experts(module: nn.Module) -> bool:
    """Whether a module is marked as experts, keeps them in its own tensors, and norms no output."""
    marked = hasattr(module, "is_transposed") and hasattr(module, "_apply_gate")
    weights = [getattr(module, name, None) for name in (*_UP, _DOWN)]
    found = [w for w in weights if isinstance(w, nn.Parameter) and w.ndim == 3]
    return marked and len(found) == 2 and not getattr(module, "has_post_expert_norm", False)


def _forward(
    experts: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """Send each token to its experts and add up what they give, weighted.

    Args:
        experts: The module.
        hidden_states: `(tokens, hidden)`.
        top_k_index: Experts of each token, `(tokens, k)`; their number itself stands for none.
        top_k_weights: Their weights, `(tokens, k)`.

    Returns:
        `(tokens, hidden)`.
    """
    total = torch.zeros_like(hidden_states)
    up = _UP[0] if experts.has_gate else _UP[1]
    for index in top_k_index.unique().tolist():
        if index >= experts.num_experts:
            continue
        tokens, place = torch.where(top_k_index == index)
        inner = _project(experts, up, hidden_states[tokens], index)
        inner = experts._apply_gate(inner) if experts.has_gate else experts.act_fn(inner)
        out = _project(experts, _DOWN, inner, index) * top_k_weights[tokens, place, None]
        total = total.index_add(0, tokens, out.to(total.dtype))
    return total


def _project(experts: Any, name: str, x: Tensor, index: int) -> Tensor:
    out: Tensor = getattr(experts, name)(x, index)
    return out + getattr(experts, f"{name}_bias")[index].to(out.dtype) if experts.has_bias else out
