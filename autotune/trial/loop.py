"""Forward, backward, step: one optimizer step over a global batch, in micro-batches.

The global batch is the same whatever the accumulation, so the mean loss and its gradient are, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from autotune.knobs.stages import StepPlan
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


def train_step(
    objective: Objective,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    plan: StepPlan,
    *,
    device: torch.device,
    enter: Callable[[str], object] = str,
) -> float:
    """Do one optimizer step.

    Args:
        objective: Has the loss.
        model: On `device`, in training mode.
        optimizer: Over the model's trained parameters.
        batch: The global batch, on the CPU.
        plan: Accumulation and loss chunks.
        device: Where micro-batches are moved to.
        enter: Told `"forward"`, `"backward"` and `"optimizer"` as they begin.

    Returns:
        The mean loss over the global batch, before the step.
    """
    total = torch.zeros((), device=device)
    for micro in _split(batch, plan.accumulation, device):
        enter("forward")
        loss = objective.loss(model, micro, plan) / plan.accumulation
        enter("backward")
        loss.backward()
        total += loss.detach()
        del loss
    enter("optimizer")
    trained = [p for p in model.parameters() if p.grad is not None]
    torch.nn.utils.clip_grad_norm_(trained, MAX_GRADIENT_NORM)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(total)


def _split(batch: Batch, parts: int, device: torch.device) -> Iterator[Batch]:
    pieces = {name: tensor.chunk(parts) for name, tensor in batch.items()}
    for index in range(parts):
        yield {name: chunks[index].to(device) for name, chunks in pieces.items()}
