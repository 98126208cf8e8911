"""What is held between steps: the storages of weights, gradients and optimizer states."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves


def is_in_file(weight: Tensor) -> bool:
    """Whether a weight lies in a memory-mapped file, so that it takes no memory of the process."""
    return bool(getattr(weight, "in_file", False))


def reachable_bytes(
    model: nn.Module, optimizer: torch.optim.Optimizer | None = None, *others: nn.Module
) -> int:
    """Return the bytes of every storage that weights, gradients and optimizer states hold.

    Args:
        model: The trained model.
        optimizer: Its states count, if it is given.
        others: Models whose weights count too, such as a teacher.
    """
    tensors = [t for m in (model, *others) for t in (*m.parameters(), *m.buffers())]
    tensors = [tensor for tensor in tensors if not is_in_file(tensor)]
    tensors += [p.grad for p in model.parameters() if p.grad is not None]
    if optimizer is not None:
        tensors += optimizer_states(optimizer)
    sizes = {}
    for tensor in tensors:
        for inner in plain_tensors(tensor):
            sizes[inner.untyped_storage()._cdata] = inner.untyped_storage().nbytes()
    return sum(sizes.values())


def optimizer_states(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Return the tensors that an optimizer keeps from step to step."""
    inner = getattr(optimizer, "optim", optimizer)  # where ranks divide states among them
    return [leaf for leaf in tree_leaves(dict(inner.state)) if isinstance(leaf, Tensor)]


def plain_tensors(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the plain tensors that a wrapper subclass is made of, or the tensor itself."""
    if is_traceable_wrapper_subclass(tensor):
        inside = (getattr(tensor, name) for name in tensor.__tensor_flatten__()[0])
        for inner in inside:  # a distributed tensor names its mesh, too
            if isinstance(inner, Tensor):
                yield from plain_tensors(inner)
    else:
        yield tensor
