"""Forward, backward, step: one optimizer step over a global batch, in micro-batches.

The global batch is the same whatever the accumulation, so the mean loss and its gradient are, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from autotune.knobs.distillation import Distiller
from autotune.knobs.scaling import LossScaler
from autotune.knobs.stages import Around, DataPlan, StepPlan
from autotune.trial.held import reachable_bytes
from autotune.trial.layouts.team import Micro, Team, alone
from autotune.trial.objective import Batch, Objective

WARMUP_SHARE = 0.1
MAX_GRADIENT_NORM = 1.0


def schedule(optimizer: torch.optim.Optimizer, steps: int) -> LambdaLR:
    """Return linear warm-up over the first tenth of the steps, then linear decay to zero."""
    warmup = max(1, round(WARMUP_SHARE * steps))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return max(0.0, (steps - step) / max(1, steps - warmup))

    return LambdaLR(optimizer, factor)


@dataclass(slots=True, kw_only=True)
class Helpers:
    """What may take part in a step beside model, optimizer and objective.

    Attributes:
        distiller: Adds what a teacher says; None without one.
        scaler: Scales the loss for gradients in 16 bits; None where they are wider.
    """

    distiller: Distiller | None = None
    scaler: LossScaler | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """Everything that takes part in a training, apart from where and how long."""

    objective: Objective
    model: nn.Module
    optimizer: torch.optim.Optimizer
    helpers: Helpers
    data: DataPlan
    plan: StepPlan
    team: Team

    @property
    def held(self) -> int:
        """Bytes of every storage that lives between steps."""
        distiller = self.helpers.distiller
        teacher = (distiller.teacher,) if distiller else ()
        return reachable_bytes(self.model, self.optimizer, *teacher) + self.team.unseen_bytes


def train_step(
    objective: Objective,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    plan: StepPlan,
    *,
    device: torch.device,
    helpers: Helpers | None = None,
    team: Team | None = None,
    enter: Callable[[str], object] = str,
) -> float:
    """Do one optimizer step.

    Args:
        objective: Has the loss.
        model: On `device`, in training mode.
        optimizer: Over the model's trained parameters.
        batch: The global batch, on the CPU.
        plan: Accumulation, loss chunks, and contexts around forward passes.
        device: Where micro-batches are moved to.
        helpers: Teacher and loss scaling, if there are any.
        team: The ranks that do it together; None for this one alone.
        enter: Told `"forward"`, `"backward"` and `"optimizer"` as they begin.

    Returns:
        The mean loss over the global batch, before the step.
    """
    helpers, team = helpers or Helpers(), team or alone(model)
    batch = team.share(batch)

    def loss_of(micro: Batch, computed: nn.Module) -> torch.Tensor:
        with contexts(plan.around_forward, device):
            loss = objective.loss(computed, micro, plan)
            if helpers.distiller is not None:
                loss = helpers.distiller.mix(loss)
        return loss / plan.accumulation

    def backward(loss: torch.Tensor) -> None:
        (loss if helpers.scaler is None else helpers.scaler.scale(loss)).backward()

    micro = Micro(
        batches=_split(batch, plan, device),
        count=plan.accumulation,
        loss=loss_of,
        backward=backward,
        enter=enter,
    )
    total = team.accumulate(micro, torch.zeros((), device=device))
    enter("optimizer")
    trained = team.gradients()
    if helpers.scaler is None or helpers.scaler.unscale(trained):
        team.clip(trained, MAX_GRADIENT_NORM)
        optimizer.step()
    keeps = plan.keep_gradients or team.keeps_gradients
    optimizer.zero_grad(set_to_none=not keeps)
    return team.mean(total)


@contextmanager
def contexts(around: Sequence[Around], device: torch.device) -> Iterator[None]:
    """Enter all of `around`, the first one outermost."""
    with ExitStack() as stack:
        for opened in around:
            stack.enter_context(opened(device))
        yield


def _split(batch: Batch, plan: StepPlan, device: torch.device) -> Iterator[Batch]:
    if plan.pinned:
        batch = {name: tensor.pin_memory() for name, tensor in batch.items()}
    pieces = {name: tensor.chunk(plan.accumulation) for name, tensor in batch.items()}
    for index in range(plan.accumulation):
        yield {
            name: chunks[index].to(device, non_blocking=plan.pinned)
            for name, chunks in pieces.items()
        }
