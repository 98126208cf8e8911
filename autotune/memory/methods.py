"""What methods of tensors and modules do in a rehearsal, where they cannot do it on fakes.

Each function takes a method of torch and returns one that does the same for real tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from autotune.memory import values


def to_numpy(original: Callable[..., Any]) -> Callable[..., Any]:
    """Have a fake give the values that are known of it."""

    def numpy(self: Tensor, *, force: bool = False) -> Any:
        return values.to_numpy(self) if values.is_fake(self) else original(self, force=force)

    return numpy


def to_list(original: Callable[..., Any]) -> Callable[..., Any]:
    """Have a fake give the values that are known of it, as a list."""

    def tolist(self: Tensor) -> Any:
        return values.to_numpy(self).tolist() if values.is_fake(self) else original(self)

    return tolist


def stay_put(original: Callable[..., Any]) -> Callable[..., Any]:
    """Have a fake stay where it is."""

    def pin_memory(self: Tensor, *args: Any) -> Tensor:
        return self if values.is_fake(self) else original(self, *args)

    return pin_memory


def copy_of_fakes(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Copy a fake by an operator: torch would copy its storage, which is on another device."""

    def copy(self: Tensor, memo: dict[int, Any]) -> Tensor:
        if not values.is_fake(self):
            return original(self, memo)
        if id(self) not in memo:
            memo[id(self)] = self.detach().clone().requires_grad_(self.requires_grad)
        copied: Tensor = memo[id(self)]
        return copied

    return copy


def apply_to_fakes(original: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Move modules of fakes by changing what their parameters hold.

    torch would swap each parameter with a new one, which it cannot while anything refers to it
    weakly, as whatever follows it does.
    """

    def apply(self: nn.Module, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Any:
        own = [*self._parameters.values(), *self._buffers.values()]
        if not all(values.is_fake(tensor) for tensor in own if tensor is not None):
            return original(self, fn, *args, **kwargs)
        for child in self.children():
            child._apply(fn)
        for parameter in self._parameters.values():
            if parameter is not None:
                _change(parameter, fn)
                if parameter.grad is not None:
                    _change(parameter.grad, fn)
        for name, buffer in self._buffers.items():
            if buffer is not None:
                self._buffers[name] = fn(buffer)
        return self

    return apply


def _change(tensor: Tensor, fn: Callable[[Tensor], Tensor]) -> None:
    with torch.no_grad():
        changed = fn(tensor)
    if changed is not tensor:
        tensor.data = changed
        tensor.fake_device = changed.device  # type: ignore[attr-defined]  # of a fake tensor
