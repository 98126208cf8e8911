"""Where the blocks of a transformer are, and the linear layers inside them.

transformers marks every block that it can recompute by one base class; those blocks are what
checkpointing, quantisation and adapters work on. The output layer and the embeddings stand outside.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeGuard

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from autotune.core.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor


def is_dense(module: nn.Module) -> TypeGuard[nn.Linear | Conv1D]:
    """Whether a module is a plain dense layer: `nn.Linear`, or GPT-2's transposed `Conv1D`."""
    forward = type(module).forward
    return forward is nn.Linear.forward or forward is Conv1D.forward


def dense_weight(layer: nn.Module) -> Tensor:
    """Return the weight of a dense layer as `(out, in)`; a transposed view for `Conv1D`."""
    weight: Tensor = layer.weight  # type: ignore[assignment]  # both kinds have a weight
    return weight.t() if isinstance(layer, Conv1D) else weight


def find_blocks(model: nn.Module) -> Sequence[tuple[str, nn.Module]]:
    """Return name and module of every block, in order.

    Raises:
        ModelError: If the model has none, or not of the kind that transformers marks.
    """
    marked = GradientCheckpointingLayer
    blocks = [(str(n), m) for n, m in model.named_modules() if isinstance(m, marked)]
    if not blocks:
        raise ModelError(
            f"{type(model).__name__} has no blocks that transformers marks as such",
            help="leave checkpointing, weight_bits and lora.rank at their neutral values",
        )
    return blocks


def transformers_base(model: nn.Module, *, way_out: str) -> nn.Module:
    """Return the module of transformers that has the blocks and takes what a batch has.

    Args:
        model: Bare, or inside an adapter.
        way_out: What to type where there is none.

    Raises:
        ModelError: If there is none.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]  # a method of peft
    base = getattr(inner, "base_model", None)
    if not isinstance(base, nn.Module):
        raise ModelError(f"{type(model).__name__} is no model of transformers", help=way_out)
    return base


def find_linears(model: nn.Module) -> dict[str, nn.Module]:
    """Return every dense layer inside the blocks, by its full name.

    Packed layers count. To be asked before adapters are put on, whose own matrices are dense too.
    """
    return {
        f"{block_name}.{name}": module
        for block_name, block in find_blocks(model)
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
    }


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` where the one of that full name is."""
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, module)
