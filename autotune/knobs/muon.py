"""Muon: a matrix moves by its momentum with all singular values made one.

One state in place of AdamW's two, for the matrices inside the blocks; embeddings, the output layer
and vectors are left to AdamW (`knobs/optimizers.py`). The update is scaled so that its root mean
square is that of AdamW's, about 0.2, and AdamW's rate and decay serve both.

References:
    Jordan 2024, Muon: an optimizer for hidden layers in neural networks;
    Liu et al. 2025, arXiv:2502.16982 (the scale).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from autotune.knobs.rounded import Update

MOMENTUM = 0.95
TYPICAL = 0.2
"""Root mean square of AdamW's updates, in units of the rate."""

_ITERATION = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


def muon(update: Update) -> None:
    """Update one matrix and its momentum."""
    grads = update.grad.view(-1)
    direction = torch.empty_like(grads, dtype=torch.float32)
    for part, (mean,) in update.moments(("mean",), len(grads)):
        grad = grads[part].float()
        mean.lerp_(grad, 1 - MOMENTUM)
        torch.lerp(grad, mean, MOMENTUM, out=direction[part])
    change = orthogonalise(direction.view_as(update.grad))
    update.move(change, TYPICAL * max(change.shape) ** 0.5)


def orthogonalise(matrix: Tensor) -> Tensor:
    """Return the matrix with singular values near one, by Newton-Schulz iteration.

    Args:
        matrix: fp32 `(m, n)`.

    Returns:
        Of the same shape; singular values are between about 0.7 and 1.2. Computed in bf16 on a
        GPU, whose products are fast and which the iteration tolerates.
    """
    a, b, c = _ITERATION
    wide = matrix.t() if matrix.shape[0] > matrix.shape[1] else matrix
    x: Tensor = wide / wide.norm().clamp_min(1e-7)
    if x.device.type == "cuda":
        x = x.bfloat16()
    for _ in range(_ITERATIONS):
        gram = x @ x.t()
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    result: Tensor = x.float()
    return result.t() if matrix.shape[0] > matrix.shape[1] else result
