"""Weights with 2 zeros in every 4, stored as the two others: half the bytes, and a mask of bits.

Devices of compute capability 8.0 and above multiply by such a weight directly, in 16 bits. It does
not train, so it is made for evaluation, and made dense again for deploying.

References:
    Mishra et al. 2021, arXiv:2104.08378; PyTorch documentation, `torch.sparse`.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.sparse import to_sparse_semi_structured

from autotune.knobs.masks import masked_layers

if TYPE_CHECKING:
    from torch import Tensor

ROWS, COLUMNS = 32, 64
"""What rows and columns must be multiples of, for either of torch's kernels."""

_TRAINED = "trained_before_packing"


def packs(weight: Tensor, capability: tuple[int, int] | None) -> bool:
    """Whether a weight `(out, in)` with 2 zeros in every 4 can be stored as the two others.

    Args:
        weight: Of a linear layer.
        capability: Compute capability of its device; None for a CPU.
    """
    rows, columns = weight.shape
    return (
        capability is not None
        and capability >= (8, 0)
        and weight.dtype in (torch.float16, torch.bfloat16)
        and rows % ROWS == 0
        and columns % COLUMNS == 0
    )


def pack_pairs(model: nn.Module) -> nn.Module:
    """Store the masked weights of linear layers without their zeros, where the device can."""
    for layer in masked_layers(model):
        if type(layer) is not nn.Linear:  # GPT-2's transposed layers multiply in another way
            continue
        weight = layer.weight.detach()
        where = weight.device
        capability = torch.cuda.get_device_capability(where) if where.type == "cuda" else None
        if packs(weight, capability):
            vars(layer)[_TRAINED] = layer.weight.requires_grad
            layer.weight = nn.Parameter(_stored(weight), requires_grad=False)
    return model


def unpack_pairs(model: nn.Module) -> nn.Module:
    """Make the weights that `pack_pairs` stored dense again."""
    for module in model.modules():
        if _TRAINED in vars(module):
            weight = module.get_parameter("weight").detach().to_dense()
            module.weight = nn.Parameter(weight, requires_grad=bool(vars(module).pop(_TRAINED)))
    return model


def _stored(weight: Tensor) -> Tensor:
    with warnings.catch_warnings():  # that its interface may change, once for each process
        warnings.filterwarnings("ignore", "The PyTorch API of SparseSemiStructuredTensor")
        return to_sparse_semi_structured(weight.contiguous())
