"""What a rehearsal need not repeat: pieces of a weight, and weights, that are updated alike.

Optimizers of this project update each weight piece by piece, in tens of small operators. A model
has thousands of pieces, which all allocate the same. The shortcuts here leave out repetitions whose
bytes are known, and nothing else; `tests/unit/test_rehearse.py` holds the two against each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from autotune.knobs import moments, rounded

if TYPE_CHECKING:
    from torch import Tensor, nn

PIECES = 3
"""Pieces of a weight that are updated: the second finds what the first left, others do, too."""


def shortcuts() -> dict[str, Any]:
    """Return what stands in for the repeating functions, by their full names."""
    return {
        "autotune.knobs.rounded.by_piece": _few_pieces(moments.by_piece),
        "autotune.knobs.rounded.Rounded.step": _step,
    }


def _few_pieces(original: Callable[..., Any]) -> Callable[..., Any]:
    def by_piece(
        state: Any, names: Sequence[str], count: int, bits: int, noise: Tensor
    ) -> Iterator[Any]:
        few: Iterator[Any] = original(state, names, min(count, PIECES * len(noise)), bits, noise)
        return few

    return by_piece


@torch.no_grad()
def _step(self: rounded.Rounded, closure: Callable[[], float] | None = None) -> float | None:
    """Do a step of which only the first and the last of equal weights are updated.

    In a step, memory that stays only grows, by new states. So what an update needs for a moment is
    the most for the last of its kind. The others get states of the kind that the first has.
    """
    loss = None if closure is None else closure()
    members = [
        (parameter, group)
        for group in self.param_groups
        for parameter in group["params"]
        if parameter.grad is not None
    ]
    kinds = [_kind(parameter, id(group)) for parameter, group in members]
    first = {kind: place for place, kind in reversed(list(enumerate(kinds)))}
    last = {kind: place for place, kind in enumerate(kinds)}
    for place, (parameter, group) in enumerate(members):
        like = first[kinds[place]]
        if place in (like, last[kinds[place]]):
            self.update(parameter, group)
        else:
            _imitate(self.state[parameter], self.state[members[like][0]])
    self.end_step()
    return loss


def _kind(parameter: nn.Parameter, group: int) -> tuple[object, ...]:
    grad = parameter.grad
    assert grad is not None
    layout = (tuple(parameter.shape), parameter.stride(), parameter.dtype)
    return (group, *layout, grad.stride(), grad.dtype)


def _imitate(state: dict[str, Any], model: dict[str, Any]) -> None:
    for name, value in model.items():
        if not isinstance(value, torch.Tensor):
            state[name] = value
        elif name not in state:
            state[name] = torch.empty_like(value)
