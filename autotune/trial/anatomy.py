"""Who holds the memory at the peak: live storages, followed by a dispatch mode.

`LiveStorages` sees every operator that allocates on one device, real or fake, keeps the live
storages by part (`ANATOMY_PARTS`), and remembers the split at the greatest moment, the operator
that ran then, and, if asked, every allocation and free in order. Tensor subclasses are looked into.
Operators' own scratch is not seen; on the CPU that is below 0.03 %.

A dispatch mode changes one thing of autograd: gradients that meet in a node are added out of place
(`isTensorSubclassLike` holds under any mode), so a traced step seems to hold one gradient more than
a real one. `_settle` undoes that: if the old sum dies right after the addition, the new one is
taken to have reused its buffer. A view is never added to in place: it refers to its base, so
autograd is not alone with the memory.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from autotune.trial.held import is_in_file, optimizer_states, plain_tensors

_PART_OF_PHASE = {"forward": "activations", "backward": "other", "optimizer": "other"}
_PLAIN = frozenset({Tensor, nn.Parameter, FakeTensor})


@dataclass(frozen=True, slots=True)
class Allocation:
    """One event of a step: a storage comes to be, or goes, or moves to another part.

    Attributes:
        storage: Number of the storage, from 1, the same in all of its events.
        bytes: Its size; negative where it goes, 0 where it moves.
        phase: What was going on; see `LiveStorages.phase`.
        part: The part that it belongs to from now on, or belonged to.
        operator: The operator that had just run, or an empty string.
    """

    storage: int
    bytes: int
    phase: str
    part: str
    operator: Any


@dataclass(slots=True, eq=False)
class _Entry:
    """A live storage: its size, the part it belongs to, its place in the order of creation."""

    bytes: int
    part: str
    order: int
    alive: weakref.ref[Any] | None = None


@dataclass(slots=True)
class _Sum:
    """An addition of gradients that may have been in place: see `LiveStorages`."""

    old: _Entry
    new: _Entry
    live_bytes: int
    event: int


class LiveStorages(TorchDispatchMode):
    """Follows live storages of one device while it is entered.

    Args:
        device: Type of the device whose storages count: `"cpu"`, `"cuda"`.
        unit: Sizes are rounded up to multiples of it, as an allocator does; in bytes.

    Attributes:
        phase: What is going on: `"forward"`, `"head"` (after the last block), `"backward"`,
            `"optimizer"`. Set by the training loop; it decides the part of new storages.
        live_bytes: Bytes that are live now.
        peak_bytes: The greatest `live_bytes` so far, or since `restart`.
        peak_parts: Bytes by part at that moment.
        peak_phase: What was going on.
        peak_operator: Name of the operator that had just run: `"aten.mm.default"`.
        events: Allocations and frees in order; None unless they are recorded.
        scratch: Tensors that live only as long as the operator that runs, put here by `compute`.
    """

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Have compiled code run compiled also while it is followed, as it does otherwise."""
        return True

    def __init__(self, device: str, *, unit: int = 1) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # untyped there
        self.device = device
        self.phase = "forward"
        self.live_bytes = 0
        self.events: list[Allocation] | None = None
        self.scratch: list[Tensor] = []
        self._unit = unit
        self._parts: Counter[str] = Counter()
        self._entries: dict[int, _Entry] = {}
        self._ignored: dict[int, weakref.ref[Any]] = {}
        self._order = 0
        self._pending: _Sum | None = None
        self._operator: Any = ""
        self.restart()

    def restart(self, *, record: bool = False) -> None:
        """Forget the peak, and look for the next one from what is live now.

        Args:
            record: Whether events are recorded from now on. They begin with what is live already.
        """
        self._settle()
        self.events = None
        if record:
            entries = sorted(self._entries.values(), key=lambda entry: entry.order)
            self.events = [Allocation(e.order, e.bytes, "before", e.part, "") for e in entries]
        self.peak_bytes = 0
        self.peak_parts: dict[str, int] = {}
        self.peak_phase = ""
        self.peak_operator = ""
        self._check()

    def enter(self, phase: str) -> None:
        """Note what is going on from now on."""
        self.phase = phase

    def adopt(self, tensors: Iterable[Tensor], part: str) -> None:
        """Count tensors that exist already, or move known ones, to `part`."""
        for tensor in tensors:
            for inner in plain_tensors(tensor):
                self._add(inner, part)
                entry = self._entries.get(inner.untyped_storage()._cdata)
                if entry is not None and entry.part != part:
                    self._parts[entry.part] -= entry.bytes
                    self._parts[part] += entry.bytes
                    entry.part = part
                    self._tell(entry, 0)
        self._check()

    def resized(self, storage: Any) -> None:
        """Note that a storage was resized, which is no operator and so is not seen."""
        entry = self._entries.get(storage._cdata)
        size = -(-storage.nbytes() // self._unit) * self._unit
        if entry is not None and entry.bytes != size:
            self._resize(entry, size)
            self._check()

    def ignore(self, tensors: Iterable[Tensor]) -> None:
        """Leave tensors out of the count, such as batches that lie outside the allocator."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key = storage._cdata
            self._ignored[key] = weakref.ref(storage, partial(self._notice, key))
            entry = self._entries.pop(key, None)
            if entry is not None:
                self._drop(entry)
                entry.bytes = 0  # its storage still tells when it dies

    def _notice(self, key: int, _: object) -> None:
        """Count again what comes to lie where an ignored storage was."""
        self._ignored.pop(key, None)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return self.follow(func, types, args, kwargs or {})

    def follow(self, func: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operator, and see what it allocates."""
        if any(kind not in _PLAIN and hasattr(kind, "__tensor_flatten__") for kind in types):
            return NotImplemented  # let the subclass take itself apart first
        if self._pending is not None:
            self._settle()
        result = self.compute(func, args, kwargs)
        self._operator = func
        if isinstance(result, Tensor):
            self._see(result)
        else:
            for leaf in tree_leaves(result):
                if isinstance(leaf, Tensor):
                    self._see(leaf)
        for tensor in self.scratch:
            self._see(tensor)
        if not self._is_accumulation(func, args, result):
            self._check()
        self.scratch.clear()
        return result

    def compute(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operator; a rehearsal answers for those that fake tensors cannot."""
        return func(*args, **kwargs)

    def _see(self, tensor: Tensor) -> None:
        if type(tensor) in _PLAIN:
            self._add(tensor, self._part())
            return
        for inner in plain_tensors(tensor):
            self._add(inner, self._part())

    def _part(self) -> str:
        if self.phase == "head":
            return "logits"
        if self.phase == "backward" and torch.is_grad_enabled():
            return "activations"  # recomputed by checkpointing
        return _PART_OF_PHASE.get(self.phase, "other")

    def _add(self, tensor: Tensor, part: str) -> None:
        device = tensor.fake_device if isinstance(tensor, FakeTensor) else tensor.device
        if device.type != self.device:
            return
        storage = tensor.untyped_storage()
        key, size = storage._cdata, -(-storage.nbytes() // self._unit) * self._unit
        known = self._entries.get(key)
        if known is not None:
            if known.bytes != size:
                self._resize(known, size)
            return
        if size == 0 or key in self._ignored:
            return
        self._order += 1
        entry = _Entry(size, part, self._order)
        entry.alive = weakref.ref(storage, lambda _: self._free(key, entry))
        self._entries[key] = entry
        self.live_bytes += size
        self._parts[part] += size
        self._tell(entry, size)

    def _resize(self, entry: _Entry, size: int) -> None:
        """Count a storage that was resized as another one in its place."""
        self._tell(entry, -entry.bytes)
        self._order += 1
        self.live_bytes += size - entry.bytes
        self._parts[entry.part] += size - entry.bytes
        entry.bytes, entry.order = size, self._order
        self._tell(entry, size)

    def _free(self, key: int, entry: _Entry) -> None:
        if self._entries.get(key) is entry:
            del self._entries[key]
        self._drop(entry)

    def _drop(self, entry: _Entry) -> None:
        self.live_bytes -= entry.bytes
        self._parts[entry.part] -= entry.bytes
        if entry.bytes:
            self._tell(entry, -entry.bytes)

    def _tell(self, entry: _Entry, change: int) -> None:
        if self.events is not None:
            told = Allocation(entry.order, change, self.phase, entry.part, self._operator)
            self.events.append(told)

    def _check(self) -> None:
        if self.live_bytes > self.peak_bytes:
            self._note(self.live_bytes)

    def _note(self, live_bytes: int) -> None:
        self.peak_bytes = live_bytes
        self.peak_parts = {part: size for part, size in self._parts.items() if size > 0}
        self.peak_phase = self.phase
        self.peak_operator = str(self._operator)

    def _is_accumulation(self, func: Any, args: tuple[Any, ...], result: Any) -> bool:
        """Remember an addition of gradients, whose peak is judged when the next operator runs."""
        if (
            func is not torch.ops.aten.add.Tensor
            or torch.is_grad_enabled()
            or torch._C._current_graph_task_id() == -1
            or not isinstance(args[0], Tensor)
            or args[0]._is_view()
        ):
            return False
        old = self._entries.get(args[0].untyped_storage()._cdata)
        new = self._entries.get(result.untyped_storage()._cdata)
        if old is None or new is None or old.bytes != new.bytes or old.order >= new.order:
            return False
        event = -1 if self.events is None else len(self.events) - 1
        self._pending = _Sum(old, new, self.live_bytes, event)
        return True

    def _settle(self) -> None:
        if self._pending is None:
            return
        done, self._pending = self._pending, None
        reused = done.old.alive is None or done.old.alive() is None
        if not reused and done.live_bytes > self.peak_bytes:
            self._note(done.live_bytes)
        if reused and self.events is not None:
            self._forget_sum(self.events, done)
        self._check()

    def _forget_sum(self, events: list[Allocation], done: _Sum) -> None:
        """Take back that the new sum came and the old one went: one buffer held both."""
        number, replaced = done.old.order, done.new.order
        after = events[done.event + 1 :]
        gone = next(i for i, e in enumerate(after) if e.storage == number and e.bytes < 0)
        after[gone] = replace(after[gone], bytes=0, part=done.new.part)
        moved = [replace(e, storage=number) if e.storage == replaced else e for e in after]
        events[done.event :] = moved
        done.new.order = number


@contextmanager
def watch_step(
    storages: LiveStorages, model: nn.Module, optimizer: torch.optim.Optimizer
) -> Iterator[None]:
    """Follow one optimizer step with `storages`, which is entered here: see `label_step`."""
    with label_step(storages, model, optimizer), storages:
        yield


@contextmanager
def label_step(
    storages: LiveStorages, model: nn.Module, optimizer: torch.optim.Optimizer
) -> Iterator[None]:
    """Tell storages that are followed which of them are weights, states and gradients.

    Args:
        storages: Entered by the caller, for this step or for longer.
        model: On the device that `storages` follows.
        optimizer: Its states are counted before and after the step.
    """
    weights = [*model.parameters(), *model.buffers()]
    storages.ignore(weight for weight in weights if is_in_file(weight))
    storages.adopt((weight for weight in weights if not is_in_file(weight)), "weights")
    storages.adopt(optimizer_states(optimizer), "optimizer")
    hooks: list[Any] = [
        parameter.register_post_accumulate_grad_hook(
            lambda p: storages.adopt((p.grad,) if p.grad is not None else (), "gradients")
        )
        for parameter in model.parameters()
        if parameter.requires_grad
    ]
    hooks += _head_hooks(storages, model)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    storages.adopt(optimizer_states(optimizer), "optimizer")


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
