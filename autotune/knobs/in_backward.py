"""Updating each parameter in the backward pass, as soon as its gradient is there.

A gradient is dropped right after its update, so gradients never exist all at once. Nothing later in
the pass needs the old weight: its gradient is complete only when every layer that uses it, tied
ones included, has been differentiated.

The norm of all gradients is not known by then. Each one is therefore clipped by its own norm, to
what the training loop clips all of them to together.

References:
    Lv et al. 2023, arXiv:2306.09782 (LOMO); PyTorch documentation, `Optimizer step in backward`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import Optimizer

from autotune.knobs.rounded import Rounded

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.hooks import RemovableHandle

MOST_NORM = 1.0
"""Norm that the gradient of one parameter is clipped to."""


class InBackward(Optimizer):
    """Lets another optimizer update each parameter when its gradient has been accumulated.

    Groups and states are those of the inner optimizer, so that schedules act on it and its states
    are seen. Hooks on the parameters go when this object does.

    Args:
        inner: Does the updates.
    """

    def __init__(self, inner: Optimizer) -> None:
        super().__init__(inner.param_groups, inner.defaults)
        self.inner = inner
        self._share()
        me = weakref.ref(self)

        def update(parameter: nn.Parameter) -> None:
            optimizer = me()
            if optimizer is not None:
                optimizer.update(parameter)

        handles = [
            parameter.register_post_accumulate_grad_hook(update)
            for group in self.param_groups
            for parameter in group["params"]
        ]
        weakref.finalize(self, _remove, handles)

    @torch.no_grad()
    def update(self, parameter: nn.Parameter) -> None:
        """Clip the gradient of one parameter, update the parameter, and drop the gradient."""
        if parameter.grad is None:
            return
        norm = torch.linalg.vector_norm(parameter.grad, dtype=torch.float32)
        parameter.grad.mul_((MOST_NORM / (norm + 1e-6)).clamp_max_(1.0))
        group = self._group_of[id(parameter)]
        if isinstance(self.inner, Rounded):
            self.inner.update(parameter, group)
        else:
            self.inner.param_groups = [{**group, "params": [parameter]}]
            self.inner.step()
            self.inner.param_groups = self.param_groups
        parameter.grad = None

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # torch overloads by closure
        """Do nothing but run the closure: the backward pass has updated every parameter."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if isinstance(self.inner, Rounded):
            self.inner.end_step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return that of the inner optimizer."""
        return self.inner.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the inner optimizer."""
        self.inner.load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        self.param_groups, self.state = self.inner.param_groups, self.inner.state
        self._group_of = {id(p): group for group in self.param_groups for p in group["params"]}


def _remove(handles: list[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()
