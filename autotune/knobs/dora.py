"""Weight-decomposed adapters: the direction of each row of a weight moves, and its length too.

The weight is `m * (W + s B A) / |W + s B A|`, row by row, and `m` trains beside `A` and `B`. The
length below the line counts as a constant in backward, as its authors propose.

What peft computes in every forward pass is dense: `W + s B A`, and `B A` from an identity matrix.
Here the lengths come from

    |W + s B A|² = |W|² + 2 s <W A', B> + s² <B A A', B>   (' is the transpose)

where `|W|²` is computed once, for `W` is frozen, and `W A'` is what the layer itself gives for the
few rows of `A`. So nothing dense is made, and a packed weight does as well as a dense one. What is
left of the costs is one more tensor for backward, the output of each adapted layer before its
length is set, which checkpointing takes back.

References:
    Liu et al. 2024, arXiv:2402.09353.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.lora.layer import LoraVariant
from torch import nn

from autotune.core.errors import ModelError
from autotune.knobs.blocks import dense_weight, is_dense
from autotune.knobs.packed import PackedLinear

if TYPE_CHECKING:
    from torch import Tensor


class Magnitude(nn.Module):
    """The length of each row of a layer's weight, as a parameter in fp32.

    It starts as the length that there is, so that adapters that add nothing change nothing.

    Args:
        base: The frozen layer, dense or packed.

    Raises:
        ModelError: If the layer's weight cannot be rebuilt.
    """

    squares: Tensor

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        squares = _squares(base)
        self.register_buffer("squares", squares, persistent=False)
        self.weight = nn.Parameter(squares.sqrt())

    def scale(self, base: nn.Module, a: Tensor, b: Tensor, scaling: float) -> Tensor:
        """Return the factor that gives each row of the adapted weight its length.

        Args:
            base: The frozen layer.
            a: Weight `A` of the adapter, `(r, in)`.
            b: Weight `B`, `(out, r)`.
            scaling: Factor on the product of the two.

        Returns:
            `(out,)` in fp32, differentiable in the magnitude alone.
        """
        with torch.no_grad(), torch.autocast(a.device.type, enabled=False):
            crossed = base(a).float()
            if isinstance(base.bias, torch.Tensor):
                # not in place: selective checkpointing may keep what the layer gave
                crossed = crossed - base.bias.float()
            rows, columns = a.float(), b.float()
            cross = (columns * crossed.t()).sum(1)
            update = (columns @ (rows @ rows.t()) * columns).sum(1)
            squares = self.squares + 2 * scaling * cross + scaling**2 * update
            length: Tensor = squares.clamp_min_(torch.finfo(torch.float32).tiny).sqrt_()
        return self.weight / length


class Dora(LoraVariant):
    """How peft's adapted layers compute with a `Magnitude`."""

    @staticmethod
    def forward(module: Any, active_adapter: str, x: Tensor, result: Tensor, **_: Any) -> Tensor:
        """Return what the adapted layer gives, `(..., out)`.

        Args:
            module: The adapted layer of peft.
            active_adapter: Name of its adapter.
            x: `(..., in)`.
            result: What the frozen layer gives for it, `(..., out)`.
            _: What is for other variants.
        """
        base = module.get_base_layer()
        down, up = module.lora_A[active_adapter], module.lora_B[active_adapter]
        scaling = module.scaling[active_adapter]
        magnitude = module.lora_magnitude_vector[active_adapter]
        factor = magnitude.scale(base, down.weight, up.weight, scaling).to(result.dtype)
        moved: Tensor = result + up(down(x)) * scaling
        if base.bias is None:
            out: Tensor = moved * factor
            return out
        # The bias has no part in the length.
        bias = base.bias.to(result.dtype)
        return torch.addcmul(bias, moved - bias, factor)


def _squares(base: nn.Module) -> Tensor:
    if isinstance(base, PackedLinear):
        weight = base.dequantise(torch.float32)
    elif is_dense(base):
        weight = dense_weight(base)
    else:
        raise ModelError(
            f"the lengths of the weights of a {type(base).__name__} are not known",
            help="set lora.variant to lora",
        )
    lengths: Tensor = torch.linalg.vector_norm(weight.detach(), dim=1, dtype=torch.float32)
    return lengths.square()
