"""What autograd saves for backward, kept in another form: in fewer bits, or somewhere else.

Hooks see every tensor that is saved. What is kept is its storage, as a whole and once: autograd
saves many views of one storage (queries, keys and values of one product; a tensor that three layers
read), and any one of them would have kept all of it alive. Restored views have the strides they
had, so that the same kernels run on them. Weights are alive anyway and stay as they are.

The hooks of non-reentrant checkpointing go inside these: what a recomputed block keeps, its input,
comes here, and what it computes again does not.

References:
    Chen et al. 2021, arXiv:2104.14129; Liu et al. 2022, arXiv:2206.11357 (fewer bits);
    Rajbhandari et al. 2021, arXiv:2104.07857 (host and disk).
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

if TYPE_CHECKING:
    from autotune.knobs.stages import Around

SMALLEST = 4096
"""Values below which a storage stays as it is: it would cost more time than it gives memory."""

SHORTEST_ROW = 64
"""Values that share a scale, at least."""

_TOP = 127
_PIECE = {"cpu": 2**18, "cuda": 2**22}  # values that exist in fp32 at once

_FEW = 8
_PRODUCTS = ("Addmm", "Mm", "Bmm", "Baddbmm", "Embedding")
_SENSITIVE = ("LogSoftmaxBackward", "LogsumexpBackward")
"""Gradients that are exponential in what they keep: rounding by 1 % of 20 nats would be 20 %."""


class Form(Protocol):
    """What is left of a storage until backward needs it."""

    def restore(self) -> Tensor:
        """Return all of its values, `(count,)`, in a storage of their own."""


Store: TypeAlias = Callable[[Tensor, int], Form]
"""Brings the values of a storage, `(count,)`, into their form; rows of so many belong together."""


def saving(open_store: Callable[[], Store], wanted: Callable[[Tensor], bool]) -> Around:
    """Return the context in which saved tensors are brought into another form.

    Args:
        open_store: Called once for every forward pass.
        wanted: Whether a saved tensor is.
    """

    @contextmanager
    def opened(device: torch.device) -> Iterator[None]:
        hooks = SavedStorages(open_store(), wanted)
        with torch.autograd.graph.saved_tensors_hooks(hooks.pack, hooks.unpack):
            yield

    return opened


def is_activation(tensor: Tensor) -> bool:
    """Whether a saved tensor is large enough to matter, and neither a weight nor a view of one."""
    if is_traceable_wrapper_subclass(tensor) or tensor.layout is not torch.strided:
        return False
    if tensor.is_complex() or tensor.is_neg():
        return False
    large = tensor.untyped_storage().nbytes() >= SMALLEST * tensor.element_size()
    return large and not isinstance(_whole(tensor), nn.Parameter)


def may_be_rounded(tensor: Tensor) -> bool:
    """Whether a saved tensor is an activation whose gradients bear rounding to eight bits.

    That is what lies between loss and weights. Not part of the graph are frozen weights in another
    dtype, masks, and sums that a fused kernel keeps for itself.
    """
    if not (tensor.is_floating_point() and tensor.requires_grad and is_activation(tensor)):
        return False
    return not _is_made_of_weight(_whole(tensor)) and not _is_sensitive(tensor)


@dataclass(slots=True, weakref_slot=True, eq=False)
class _Kept:
    """A storage in its form, and the restored one for as long as something uses it."""

    form: Form
    restored: weakref.ref[torch.UntypedStorage] | None = None

    def storage(self) -> torch.UntypedStorage:
        storage = None if self.restored is None else self.restored()
        if storage is None:
            storage = self.form.restore().untyped_storage()
            self.restored = weakref.ref(storage)
        return storage


@dataclass(frozen=True, slots=True)
class _Saved:
    """A view of a storage that is kept."""

    kept: _Kept
    offset: int
    size: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True, slots=True)
class _Seen:
    """Which contents of which storage were kept; both may be gone."""

    storage: weakref.ref[torch.UntypedStorage]
    version: int
    dtype: torch.dtype
    kept: weakref.ref[_Kept]


class SavedStorages:
    """The pair of hooks for one forward pass.

    Args:
        store: Brings values into their form.
        wanted: Whether a saved tensor is; all others are kept as they are.
    """

    def __init__(self, store: Store, wanted: Callable[[Tensor], bool]) -> None:
        self._store = store
        self._wanted = wanted
        self._seen: dict[int, _Seen] = {}

    def pack(self, tensor: Tensor) -> Tensor | _Saved:
        """Return what autograd keeps in place of a tensor."""
        if not self._wanted(tensor):
            return tensor.detach()  # the tensor itself may hold the node that it is saved in
        kept, offset = self._keep(tensor), int(tensor.storage_offset())
        return _Saved(kept, offset, tensor.shape, tensor.stride(), tensor.dtype, tensor.device)

    def unpack(self, saved: Tensor | _Saved) -> Tensor:
        """Return the tensor that was saved."""
        if isinstance(saved, Tensor):
            return saved
        empty = torch.empty(0, dtype=saved.dtype, device=saved.device)
        return empty.set_(saved.kept.storage(), saved.offset, saved.size, saved.stride)

    def _keep(self, tensor: Tensor) -> _Kept:
        storage, version = tensor.untyped_storage(), tensor._version
        seen = self._seen.get(storage._cdata)
        # An address is used again once its storage has died, but then the reference has died too.
        if seen is not None and seen.storage() is storage:
            kept = seen.kept()
            if kept is not None and (seen.version, seen.dtype) == (version, tensor.dtype):
                return kept
        count = storage.nbytes() // tensor.element_size()
        values = tensor.detach().as_strided((count,), (1,), 0)
        kept = _Kept(self._store(values, _row(tensor, count)))
        self._seen[storage._cdata] = _Seen(
            weakref.ref(storage), version, tensor.dtype, weakref.ref(kept)
        )
        return kept


class EightBits:
    """Whole numbers from -127 to 127 with an fp32 scale for each row, rounded to nearest.

    Args:
        values: `(count,)`.
        row: Values that share a scale; divides the count.
    """

    def __init__(self, values: Tensor, row: int) -> None:
        self._dtype = values.dtype
        rows = values.view(-1, row)
        self._codes = torch.empty_like(rows, dtype=torch.int8)
        self._scale = torch.empty(len(rows), 1, device=rows.device)
        for part in self._parts():
            wide = rows[part].float()
            low, high = wide.aminmax(dim=1, keepdim=True)
            scale = torch.maximum(high, -low).div_(_TOP)
            self._scale[part] = scale
            self._codes[part] = wide.div(scale.clamp_min_(1e-30)).round_()

    def restore(self) -> Tensor:
        """Return the rounded values; a row that held one that is not finite is not finite."""
        values = torch.empty_like(self._codes, dtype=self._dtype)
        for part in self._parts():
            values[part] = self._codes[part] * self._scale[part]
        return values.flatten()

    def _parts(self) -> list[slice]:
        count, row = self._codes.shape
        step = max(1, _PIECE.get(self._codes.device.type, 2**18) // row)
        return [slice(start, start + step) for start in range(0, count, step)]


def _whole(tensor: Tensor) -> Tensor:
    base = tensor._base if tensor._is_view() else None
    return tensor if base is None else base


def _is_made_of_weight(tensor: Tensor) -> bool:
    """Whether this is a weight in another form: cast by autocast, masked, rounded while it trains.

    That is: of the shape of a parameter, and computed from it by few operators, no product among
    them.
    """
    nodes = [tensor.grad_fn]
    for _ in range(_FEW):
        node = nodes.pop(0) if nodes else None
        if node is None or node.name().startswith(_PRODUCTS):
            continue
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, nn.Parameter) and leaf.shape == tensor.shape:
            return True
        nodes += [source for source, _ in node.next_functions]
    return False


def _is_sensitive(tensor: Tensor) -> bool:
    node = _whole(tensor).grad_fn
    return node is not None and node.name().startswith(_SENSITIVE)


def _row(tensor: Tensor, count: int) -> int:
    """Return how many neighbours share a scale: a row of the tensor, or several short ones."""
    row = next(
        (n for n, step in zip(tensor.shape, tensor.stride(), strict=True) if step == 1 and n > 1),
        1,
    )
    if count % row:
        row = math.gcd(count, SHORTEST_ROW)
    while row < SHORTEST_ROW and count % (2 * row) == 0:
        row *= 2
    return row
