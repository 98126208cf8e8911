"""Who holds the memory at the peak: live storages, followed by a dispatch mode.

`LiveStorages` sees every operator that allocates on one device, real or fake, keeps the live
storages by part (`ANATOMY_PARTS`), and remembers the split at the greatest moment. Tensor
subclasses are looked into. Operators' own scratch is not seen; on the CPU that is below 0.03 %.

A dispatch mode changes one thing of autograd: gradients that meet in a node are added out of place
(`isTensorSubclassLike` holds under any mode), so a traced step seems to hold one gradient more than
a real one. `_settle` undoes that: if the old sum dies right after the addition, the new one is
taken to have reused its buffer.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves

_PART_OF_PHASE = {"forward": "activations", "backward": "other", "optimizer": "other"}


@dataclass(slots=True, eq=False)
class _Entry:
    """A live storage: its size, the part it belongs to, its place in the order of creation."""

    bytes: int
    part: str
    order: int
    alive: weakref.ref[Any] | None = None


class LiveStorages(TorchDispatchMode):
    """Follows live storages of one device while it is entered.

    Args:
        device: Type of the device whose storages count: `"cpu"`, `"cuda"`.

    Attributes:
        phase: What is going on: `"forward"`, `"head"` (after the last block), `"backward"`,
            `"optimizer"`. Set by the training loop; it decides the part of new storages.
        live_bytes: Bytes that are live now.
        peak_bytes: The greatest `live_bytes` so far.
        peak_parts: Bytes by part at that moment.
    """

    def __init__(self, device: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # untyped there
        self.device = device
        self.phase = "forward"
        self.live_bytes = 0
        self.peak_bytes = 0
        self.peak_parts: dict[str, int] = {}
        self._parts: Counter[str] = Counter()
        self._entries: dict[int, _Entry] = {}
        self._order = 0
        self._pending: tuple[_Entry, int] | None = None

    def enter(self, phase: str) -> None:
        """Note what is going on from now on."""
        self.phase = phase

    def adopt(self, tensors: Iterable[Tensor], part: str) -> None:
        """Count tensors that exist already, or move known ones, to `part`."""
        for tensor in tensors:
            for inner in _plain_tensors(tensor):
                self._add(inner, part)
                entry = self._entries.get(inner.untyped_storage()._cdata)
                if entry is not None and entry.part != part:
                    self._parts[entry.part] -= entry.bytes
                    self._parts[part] += entry.bytes
                    entry.part = part
        self._check()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if any(hasattr(kind, "__tensor_flatten__") and kind is not FakeTensor for kind in types):
            return NotImplemented  # let the subclass take itself apart first
        self._settle()
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                for inner in _plain_tensors(leaf):
                    self._add(inner, self._part())
        if not self._is_accumulation(func, args, result):
            self._check()
        return result

    def _part(self) -> str:
        if self.phase == "head":
            return "logits"
        if self.phase == "backward" and torch.is_grad_enabled():
            return "activations"  # recomputed by checkpointing
        return _PART_OF_PHASE.get(self.phase, "other")

    def _add(self, tensor: Tensor, part: str) -> None:
        if tensor.device.type != self.device:
            return
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        known = self._entries.get(key)
        if known is not None:
            self.live_bytes += size - known.bytes
            self._parts[known.part] += size - known.bytes
            known.bytes = size
            return
        if size == 0:
            return
        self._order += 1
        entry = _Entry(size, part, self._order)
        entry.alive = weakref.ref(storage, lambda _: self._free(key, entry))
        self._entries[key] = entry
        self.live_bytes += size
        self._parts[part] += size

    def _free(self, key: int, entry: _Entry) -> None:
        if self._entries.get(key) is entry:
            del self._entries[key]
        self.live_bytes -= entry.bytes
        self._parts[entry.part] -= entry.bytes

    def _check(self) -> None:
        if self.live_bytes > self.peak_bytes:
            self.peak_bytes = self.live_bytes
            self.peak_parts = {part: size for part, size in self._parts.items() if size > 0}

    def _is_accumulation(self, func: Any, args: tuple[Any, ...], result: Any) -> bool:
        """Remember an addition of gradients, whose peak is judged when the next operator runs."""
        if (
            func is not torch.ops.aten.add.Tensor
            or torch.is_grad_enabled()
            or torch._C._current_graph_task_id() == -1
            or not isinstance(args[0], Tensor)
        ):
            return False
        old = self._entries.get(args[0].untyped_storage()._cdata)
        new = self._entries.get(result.untyped_storage()._cdata)
        if old is None or new is None or old is new or old.bytes != new.bytes:
            return False
        self._pending = (old, self.live_bytes)
        return True

    def _settle(self) -> None:
        if self._pending is None:
            return
        (old, live_then), self._pending = self._pending, None
        reused = old.alive is None or old.alive() is None
        if not reused and live_then > self.peak_bytes:
            self.peak_bytes = live_then
            self.peak_parts = {part: size for part, size in self._parts.items() if size > 0}
        self._check()


@contextmanager
def watch_step(
    storages: LiveStorages, model: nn.Module, optimizer: torch.optim.Optimizer
) -> Iterator[None]:
    """Follow one optimizer step: count what exists, and label gradients as they appear.

    Args:
        storages: Not entered yet; entered here.
        model: On the device that `storages` follows.
        optimizer: Its states are counted before and after the step.
    """
    storages.adopt((*model.parameters(), *model.buffers()), "weights")
    storages.adopt(_optimizer_states(optimizer), "optimizer")
    hooks: list[Any] = [
        parameter.register_post_accumulate_grad_hook(
            lambda p: storages.adopt((p.grad,) if p.grad is not None else (), "gradients")
        )
        for parameter in model.parameters()
        if parameter.requires_grad
    ]
    hooks += _head_hooks(storages, model)
    try:
        with storages:
            yield
            storages.adopt(_optimizer_states(optimizer), "optimizer")
    finally:
        for hook in hooks:
            hook.remove()


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
    tensors += [p.grad for p in model.parameters() if p.grad is not None]
    if optimizer is not None:
        tensors += _optimizer_states(optimizer)
    sizes = {}
    for tensor in tensors:
        for inner in _plain_tensors(tensor):
            sizes[inner.untyped_storage()._cdata] = inner.untyped_storage().nbytes()
    return sum(sizes.values())


def _head_hooks(storages: LiveStorages, model: nn.Module) -> list[Any]:
    """After the last block has run forward, new storages are logits and loss."""
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) > 0]
    if not stacks:
        return []
    blocks = max(stacks, key=len)

    def enter_head(*_: object) -> None:
        if storages.phase == "forward":
            storages.phase = "head"

    return [blocks[-1].register_forward_hook(enter_head)]


def _optimizer_states(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(dict(optimizer.state)) if isinstance(leaf, Tensor)]


def _plain_tensors(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the plain tensors that a wrapper subclass is made of, or the tensor itself."""
    if is_traceable_wrapper_subclass(tensor):
        for name in tensor.__tensor_flatten__()[0]:
            yield from _plain_tensors(getattr(tensor, name))
    else:
        yield tensor
