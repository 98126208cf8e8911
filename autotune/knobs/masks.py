"""Weights that are held at zero while the others train: a mask beside each layer of the blocks.

A mask is true where the weight is zero. It is applied to the weight itself, at the start and again
after every optimizer step, so forward and backward know nothing of it and no second weight exists:
one byte per masked weight is all that it costs. Masks are no part of a saved model.

References:
    Han et al. 2015, arXiv:1506.02626 (magnitude of single weights);
    Zhu and Gupta 2017, arXiv:1710.01878 (more and more of them while training);
    Mishra et al. 2021, arXiv:2104.08378 (2 of 4).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from autotune.core.errors import ModelError
from autotune.knobs.blocks import dense_weight, find_linears, is_dense

if TYPE_CHECKING:
    from torch import Tensor

MASK = "held_at_zero"
"""Name of the buffer that holds a layer's mask, in the layout of its weight."""

REACHED_AT = 0.8
"""Share of the training after which a gradual schedule has pruned everything it is to prune."""

_SHARE, _COUNT = "held_share", "held_count"
_COARSE = 0.01  # a mask that grows is found anew for every hundredth of its weights, not every step


def pruned_by(done: float) -> float:
    """Return how much of the pruning is done by then: the cubic schedule of Zhu and Gupta.

    Args:
        done: Share of the training that is done, from 0 to 1.

    Returns:
        From 0 to 1, fast at first; 1 from `REACHED_AT` on.
    """
    return float(1.0 - (1.0 - min(1.0, done / REACHED_AT)) ** 3)


def mask_share(model: nn.Module, share: float, *, gradual: bool = False) -> None:
    """Hold the smallest weights of each dense layer of the blocks at zero.

    Args:
        model: A transformers model.
        share: Part of each matrix.
        gradual: Whether the mask starts empty and grows while training (`keep_zeros`).

    Raises:
        ModelError: If the model has no blocks, or no dense layers in them.
    """
    for layer in _layers(model):
        weight = dense_weight(layer)
        if gradual:
            _put(layer, torch.zeros_like(weight, dtype=torch.bool))
            vars(layer).update({_SHARE: share, _COUNT: 0})
        else:
            _put(layer, smallest(weight.detach(), round(share * weight.numel())))


def mask_pairs(model: nn.Module) -> None:
    """Hold the 2 smallest of every 4 neighbours along the input at zero, where 4 divides the width.

    Raises:
        ModelError: If the model has no such layer.
    """
    fitting = [layer for layer in _layers(model) if dense_weight(layer).shape[1] % 4 == 0]
    if not fitting:
        raise ModelError(
            f"no dense layer in the blocks of {type(model).__name__} has a width that 4 divides",
            help="set prune.nm to none",
        )
    for layer in fitting:
        _put(layer, two_of_four(dense_weight(layer).detach()))


def smallest(weight: Tensor, count: int) -> Tensor:
    """Return where the `count` values of least magnitude are, exactly that many also with ties."""
    if count == 0:
        return torch.zeros_like(weight, dtype=torch.bool)
    size = weight.abs().flatten().float()
    threshold = size.kthvalue(count).values
    below, level = size < threshold, size == threshold
    chosen = below | (level & (level.cumsum(0) <= count - below.sum()))
    return chosen.view(weight.shape)


def two_of_four(weight: Tensor) -> Tensor:
    """Return where the 2 smallest of every 4 neighbours in a row of `(out, in)` are."""
    groups = weight.abs().reshape(len(weight), -1, 4)
    chosen = torch.zeros_like(groups, dtype=torch.bool)
    chosen.scatter_(2, groups.topk(2, dim=2, largest=False).indices, True)
    return chosen.view(weight.shape)


@torch.no_grad()
def keep_zeros(model: nn.Module, done: float) -> None:
    """Set masked weights to zero again, and let masks grow that are to: after an optimizer step.

    Args:
        model: After `mask_share` or `mask_pairs`.
        done: Share of the training that is done.

    Raises:
        ModelError: If the masks are gone, since something put other layers in place of theirs.
    """
    masked = list(masked_layers(model))
    if not masked:
        raise ModelError(
            f"the masks of {type(model).__name__} are gone: its layers were replaced after pruning",
            help="set prune.unstructured to 0.0 and prune.nm to none",
        )
    for layer in masked:
        mask = layer.get_buffer(MASK)
        if _SHARE in vars(layer):
            _grow(layer, mask, done)
        layer.get_parameter("weight").masked_fill_(mask, 0.0)


def masked_layers(model: nn.Module) -> Iterator[nn.Module]:
    """Yield every layer that has a mask."""
    for module in model.modules():
        if MASK in module._buffers:
            yield module


def remove_masks(model: nn.Module) -> nn.Module:
    """Forget the masks, whose weights are zero by now, and their memory."""
    for layer in list(masked_layers(model)):
        delattr(layer, MASK)
        for name in (_SHARE, _COUNT):
            vars(layer).pop(name, None)
    return model


def _grow(layer: nn.Module, mask: Tensor, done: float) -> None:
    known = vars(layer)
    wanted = round(known[_SHARE] * mask.numel() * pruned_by(done))
    if wanted - known[_COUNT] >= _COARSE * mask.numel() or (
        done >= REACHED_AT and wanted > known[_COUNT]
    ):
        mask.copy_(smallest(layer.get_parameter("weight"), wanted))
        known[_COUNT] = wanted


def _layers(model: nn.Module) -> list[nn.Linear | Conv1D]:
    found = [layer for layer in find_linears(model).values() if is_dense(layer)]
    if not found:
        raise ModelError(
            f"{type(model).__name__} has no plain dense layers in its blocks",
            help="set prune.unstructured to 0.0 and prune.nm to none",
        )
    return found


@torch.no_grad()
def _put(layer: nn.Linear | Conv1D, mask: Tensor) -> None:
    """Give a layer a mask `(out, in)`, and apply it."""
    held = mask.t().contiguous() if isinstance(layer, Conv1D) else mask.contiguous()
    layer.register_buffer(MASK, held, persistent=False)
    layer.weight.masked_fill_(held, 0.0)
