"""What a trial asks of the ranks that train it; here for one rank, which has all to itself.

The lifecycle and the training loop know no layouts. They hand the model to a team, ask it for its
share of a batch, compute every loss through it, and have it see to gradients; a layout is a team
that does some of this together with other ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import nn

from autotune.knobs.optimizers import Around
from autotune.trial.objective import Batch

if TYPE_CHECKING:
    from torch import Tensor

    from autotune.core.outcome import Score
    from autotune.knobs.stages import DataPlan

T = TypeVar("T")

Build = Callable[[Sequence[nn.Parameter], Around | None], torch.optim.Optimizer]
"""Makes the optimizer of the plan over parameters, with something around it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Micro:
    """How the micro-batches of one step are computed; see `loop.train_step`.

    Attributes:
        batches: They, on the device.
        count: How many.
        loss: The scaled loss of one, under a model.
        backward: Computes gradients of a loss.
        enter: Told `"forward"` and `"backward"` as they begin.
    """

    batches: Iterator[Batch]
    count: int
    loss: Callable[[Batch, nn.Module], Tensor]
    backward: Callable[[Tensor], None]
    enter: Callable[[str], object]


class Team:
    """One rank that trains alone.

    Attributes:
        rank: Number of this rank.
        size: Number of ranks.
        model: What this rank has of the model; there after `arrange`.
    """

    rank = 0
    size = 1
    model: nn.Module

    @property
    def leads(self) -> bool:
        """Whether this rank says how the trial went, and keeps its model."""
        return self.rank == 0

    def place(self, model: nn.Module, move: Callable[[nn.Module], nn.Module]) -> nn.Module:
        """Return the model on its device; a team that divides weights may leave it where it is."""
        return move(model)

    def arrange(self, model: nn.Module, data: DataPlan) -> nn.Module:
        """Take a model that is on its device, and return what this rank has of it.

        Args:
            model: Whole, adapted, the same on every rank.
            data: How batches are made.
        """
        self.model = model
        return model

    def optimizer(self, build: Build) -> torch.optim.Optimizer:
        """Return the optimizer over what this rank updates."""
        return build([p for p in self.model.parameters() if p.requires_grad], None)

    def share(self, batch: Batch) -> Batch:
        """Return this rank's part of a global batch."""
        return batch

    def accumulate(self, micro: Micro, total: Tensor) -> Tensor:
        """Compute gradients of all micro-batches.

        Args:
            micro: What is computed.
            total: A zero on the device, that the losses are added to.

        Returns:
            The loss of this rank's part of the batch.
        """
        for index, batch in enumerate(micro.batches):
            with self.synchronise(last=index == micro.count - 1):
                micro.enter("forward")
                loss = self.compute(partial(micro.loss, batch))
                micro.enter("backward")
                micro.backward(loss)
                total += loss.detach()
                del loss
        return total

    def synchronise(self, *, last: bool) -> AbstractContextManager[None]:
        """Open the context of a micro-batch; gradients are exchanged in that of the last one."""
        return nullcontext()

    def compute(self, of: Callable[[nn.Module], T]) -> T:
        """Return a function of the model, with whatever must happen around it."""
        return of(self.model)

    @property
    def different_micro_batches(self) -> int:
        """How many micro-batches of a step differ in what they hold; later ones are like these.

        One finds no gradients, one adds to them.
        """
        return 2

    @property
    def keeps_gradients(self) -> bool:
        """Whether gradients live in buffers that stay from step to step."""
        return False

    @property
    def unseen_bytes(self) -> int:
        """Bytes of such buffers that no gradient shows yet."""
        return 0

    def gradients(self) -> list[nn.Parameter]:
        """Return the parameters that the optimizer is about to update, with their gradients."""
        return [p for p in self.model.parameters() if p.grad is not None]

    def clip(self, trained: Sequence[nn.Parameter], most: float) -> None:
        """Scale gradients down to a norm, over all ranks, of at most `most`."""
        torch.nn.utils.clip_grad_norm_(trained, most)

    def mean(self, loss: Tensor) -> float:
        """Return the loss over the global batch from that over this rank's part."""
        return float(loss)

    def rest(self) -> None:
        """Let go of what only gradients need: training is over."""

    def evaluate(
        self, score: Callable[[nn.Module], Mapping[str, Score]]
    ) -> Mapping[str, Score] | None:
        """Return the scores of the trained model; None on ranks that have none to tell."""
        return score(self.model)

    def count(self) -> tuple[int, int]:
        """Return the number of parameters of the whole model, and of those that train."""
        return count_parameters(self.model)

    def whole(self) -> nn.Module | None:
        """Return the whole trained model, on the CPU if it was shared; None on ranks without it."""
        return self.model

    def leave(self) -> None:
        """End what was opened to exchange tensors."""


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Return the number of parameters, and of those that train."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trains in sizes if trains)


def alone(model: nn.Module) -> Team:
    """Return the team of one rank that has the whole model."""
    team = Team()
    team.model = model
    return team
