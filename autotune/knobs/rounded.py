"""The optimizer behind every update that torch has no kernel for.

It walks over parameters and hands each one, with its gradient and its state, to the method that its
group names. A method computes in fp32, writes back what it made (`knobs/rounding.py`) and keeps its
moments in as many bits as were asked for (`knobs/moments.py`), so weights in bf16 or fp16 and short
states are the same to it as fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch.optim import Optimizer

from autotune.knobs.moments import by_piece, new_moment
from autotune.knobs.rounding import Noise, round_stochastically

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """One parameter that is being updated.

    Attributes:
        weight: Contiguous; changed in place.
        grad: Contiguous, of the same shape.
        state: Its own, changed in place; `"step"` counts from 1.
        group: Options of its parameter group: rate, decay, bits.
        noise: For rounding, one value for each of a piece.
    """

    weight: Tensor
    grad: Tensor
    state: dict[str, Any]
    group: Mapping[str, Any]
    noise: Tensor

    @property
    def step(self) -> int:
        """Number of this update, from 1."""
        count: int = self.state["step"]
        return count

    def moments(self, names: Sequence[str], count: int) -> Iterator[tuple[slice, list[Tensor]]]:
        """Yield each piece of `count` values and its moments in fp32, which may be changed."""
        bits = self.group["bits"]
        for name in names:
            if name not in self.state:
                self.state.update(new_moment(name, count, self.weight.device, bits))
        return by_piece(self.state, names, count, bits, self.noise)

    def write(self, value: Tensor, part: slice = slice(None)) -> None:
        """Write fp32 values to part of the flat weight, rounded without bias; they are used up."""
        size, target = len(self.noise), self.weight.view(-1)[part]
        for new, old in zip(value.view(-1).split(size), target.split(size), strict=True):
            round_stochastically(old, new, self.noise[: len(new)])

    def move(self, change: Tensor, scale: float) -> None:
        """Subtract the rate times `scale` times `change`, of the weight's shape; decay first."""
        rate = self.group["lr"]
        wide = self.weight.float().mul_(1 - rate * self.group["weight_decay"])
        self.write(wide.sub_(change, alpha=rate * scale))


Method: TypeAlias = "Callable[[Update], None]"


class Rounded(Optimizer):
    """Updates each parameter by the method of its group.

    Args:
        groups: Parameter groups, each with `"weight_decay"`, `"method"` and `"bits"`.
        lr: Learning rate of all of them.
        methods: By name.
    """

    def __init__(
        self, groups: list[dict[str, Any]], *, lr: float, methods: Mapping[str, Method]
    ) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0, "bits": 32})
        self.methods = methods
        self._noise = Noise()

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
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.update(parameter, group)
        self.end_step()
        return loss

    @torch.no_grad()
    def update(self, parameter: nn.Parameter, group: Mapping[str, Any]) -> None:
        """Update one parameter of a group by its gradient."""
        assert parameter.grad is not None
        state = self.state[parameter]
        state["step"] = state.get("step", 0) + 1
        weight = parameter.contiguous()
        self.methods[group["method"]](
            Update(
                weight=weight,
                grad=parameter.grad.contiguous(),
                state=state,
                group=group,
                noise=self._noise.of(weight.device, state["step"]),
            )
        )
        if weight is not parameter:
            parameter.copy_(weight)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore groups and states; codes and scales as they were saved.

        Torch's own method casts states to the dtype of the weight, which destroys codes.
        """
        super().load_state_dict(state_dict)
        saved = [index for group in state_dict["param_groups"] for index in group["params"]]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for index, parameter in zip(saved, parameters, strict=True):
            if index in state_dict["state"]:
                self.state[parameter] = {
                    name: value.to(parameter.device, copy=True) if torch.is_tensor(value) else value
                    for name, value in state_dict["state"][index].items()
                }

    def end_step(self) -> None:
        """Forget what one step needs and the next one does not."""
        self._noise.forget()
