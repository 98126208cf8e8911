"""A whole model from the parts that ranks have, for a checkpoint that needs no ranks to load.

Before a model is divided, its structure is copied without its tensors. Afterwards each tensor is
put together and goes where it belongs. So what is kept is the model as one rank would have it:
none of the hooks and classes that a layout adds.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from autotune.trial.layouts.pipeline import Stage


class Skeleton:
    """The structure of a model, to be filled.

    Args:
        model: Whole and not yet divided; is not changed.
    """

    def __init__(self, model: nn.Module) -> None:
        memo: dict[int, Tensor] = {}
        for parameter in model.parameters():
            empty = torch.empty(0, dtype=parameter.dtype)
            memo[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
        self.model: nn.Module = copy.deepcopy(model, memo)
        self._places = dict(self.model.named_parameters())

    def tensors(self, model: nn.Module, stage: Stage | None) -> Iterator[tuple[str, Tensor]]:
        """Yield every parameter by its name in the whole model, in the same order on all ranks."""
        if stage is not None:
            yield from stage.parameters(self._places)
            return
        yield from model.named_parameters()

    def fill(self, name: str, tensor: Tensor) -> None:
        """Put a whole tensor where it belongs."""
        self._places[name].data = tensor.detach().cpu().clone()
