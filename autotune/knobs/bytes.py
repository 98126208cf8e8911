"""Bytes of tensors, also of those that are made of other tensors.

A quantised tensor of another library is a wrapper whose own size is that of the dense tensor it
stands for; its real bytes are in the tensors that `__tensor_flatten__` names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor


def parts(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the plain tensors that a tensor is made of; itself if it is plain."""
    flatten: Any = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        yield tensor
        return
    names, _ = flatten()
    for name in names:
        inner = getattr(tensor, name)
        if isinstance(inner, torch.Tensor):
            yield from parts(inner)


def storages(tensor: Tensor) -> dict[int, int]:
    """Return the bytes of each storage under a tensor, by identity; views share their base's."""
    found = (part.untyped_storage() for part in parts(tensor))
    return {storage._cdata: storage.nbytes() for storage in found}


def tensor_bytes(tensor: Tensor) -> int:
    """Return the bytes of a tensor's own elements."""
    return sum(part.numel() * part.element_size() for part in parts(tensor))


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes that tensors keep alive together; a storage that is shared counts once."""
    together: dict[int, int] = {}
    for tensor in tensors:
        together.update(storages(tensor))
    return sum(together.values())
