"""Optimizer states on the host, where the updates are made as well.

Each step copies gradients and weights to the host, updates there, and copies the weights back; the
device holds no states at all. What crosses the bus is a gradient and two weights per parameter,
into page-locked buffers, so that the copies of all parameters overlap with each other.

Weights go down again in every step, since something else may have changed them on the device
meanwhile, such as pruning.

References:
    Ren et al. 2021, arXiv:2101.06840 (ZeRO-Offload).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer

if TYPE_CHECKING:
    from torch import Tensor


class Offloaded(Optimizer):
    """An optimizer over host copies of parameters on a device.

    Args:
        groups: Parameter groups, on the device.
        make: Builds the optimizer over groups of the copies.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        make: Callable[[list[dict[str, Any]]], Optimizer],
    ) -> None:
        members = [list(group["params"]) for group in groups]
        copies = [[_on_host(parameter) for parameter in group] for group in members]
        self.inner = make(
            [{**group, "params": copied} for group, copied in zip(groups, copies, strict=True)]
        )
        mirrored = [
            {**group, "params": originals}
            for group, originals in zip(self.inner.param_groups, members, strict=True)
        ]
        super().__init__(mirrored, self.inner.defaults)
        self.state = self.inner.state
        self._pairs = [
            (original, copy)
            for originals, copied in zip(members, copies, strict=True)
            for original, copy in zip(originals, copied, strict=True)
        ]
        self._gradients: dict[nn.Parameter, Tensor] = {}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # torch overloads by closure
        """Update every parameter that has a gradient.

        Args:
            closure: Computes loss and gradients first, as in every torch optimizer.

        Returns:
            What the closure returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for outer, group in zip(self.param_groups, self.inner.param_groups, strict=True):
            group.update({name: value for name, value in outer.items() if name != "params"})
        updated = [(p, copy) for p, copy in self._pairs if p.grad is not None]
        for parameter, copy in self._pairs:
            copy.grad = self._fetched(parameter)
        for parameter, copy in updated:
            copy.copy_(parameter, non_blocking=True)
        for device in {parameter.device for parameter, _ in updated}:
            _wait(device)
        self.inner.step()
        for parameter, copy in updated:
            parameter.copy_(copy, non_blocking=True)
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return that of the optimizer on the host."""
        return self.inner.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the optimizer on the host."""
        self.inner.load_state_dict(state_dict)
        self.state = self.inner.state
        for outer, group in zip(self.param_groups, self.inner.param_groups, strict=True):
            outer.update({name: value for name, value in group.items() if name != "params"})

    def _fetched(self, parameter: nn.Parameter) -> Tensor | None:
        """Start copying a gradient to its buffer on the host; None if there is no gradient."""
        if parameter.grad is None:
            return None
        if parameter not in self._gradients:
            self._gradients[parameter] = _pinned(parameter.grad)
        return self._gradients[parameter].copy_(parameter.grad, non_blocking=True)


def _on_host(parameter: nn.Parameter) -> nn.Parameter:
    copy = nn.Parameter(_pinned(parameter.detach()).copy_(parameter.detach()))
    copy.grad_dtype = parameter.grad_dtype
    return copy


def _pinned(like: Tensor) -> Tensor:
    """Return memory on the host of the shape and dtype of a tensor; page-locked for a GPU."""
    memory = torch.empty_like(like, device="cpu")
    return memory.pin_memory() if like.device.type == "cuda" else memory


def _wait(device: torch.device) -> None:
    """Wait for copies to the host; in a rehearsal without the device there are none."""
    if device.type == "cuda" and torch.cuda.is_available():
        torch.cuda.current_stream(device).synchronize()
