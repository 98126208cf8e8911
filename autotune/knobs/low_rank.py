"""GaLore and APOLLO: AdamW whose moments are those of a projection of the gradient.

The gradient of a matrix `(m, n)`, `m <= n`, is projected to `(r, n)`, and only moments of that are
kept. GaLore projects on the leading directions of the gradient, found anew every `REFRESH` steps,
and moves within them; they are kept in fp32, or in bf16 where moments are in fewer bits. APOLLO
projects at random, keeps no directions, and learns only how far each column of the gradient should
go; it moves along the gradient itself, in full rank.

Both move less than AdamW would, by the root of `r / m`: few directions, or few entries behind each
norm. Updates are scaled up by that, so that AdamW's rate serves.

References:
    GaLore: Zhao et al. 2024, arXiv:2403.03507; APOLLO: Zhu et al. 2024, arXiv:2412.05270;
    Halko, Martinsson and Tropp 2009, arXiv:0909.4061 (leading directions from random products).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from autotune.knobs.elementwise import adam_direction
from autotune.knobs.rounding import generator

if TYPE_CHECKING:
    from torch import Tensor

    from autotune.knobs.rounded import Update

REFRESH = 50
"""Steps between new projections."""

MOST_RANK = 128
"""Greatest rank that is chosen by default."""

_GROWTH = 1.01  # the norm of an APOLLO update grows by no more than that from step to step
_SPARE = 8  # directions found in excess, which makes those that are kept accurate
_ITERATIONS = 2


def rank_of(shape: torch.Size, wanted: int = 0) -> int:
    """Return the rank of the projection of a matrix.

    Args:
        shape: `(m, n)`.
        wanted: The rank that was asked for; 0 for a quarter of the shorter side, up to `MOST_RANK`.
    """
    return wanted or min(MOST_RANK, max(1, min(shape) // 4))


def galore(update: Update) -> None:
    """Update one matrix by Adam within the leading directions of its gradient."""
    grad, rank = _wide(update.grad.float()), update.group["rank"]
    if (update.step - 1) % REFRESH == 0:
        narrow = torch.float32 if update.group["bits"] == 32 else torch.bfloat16
        rank = rank_of(grad.shape, rank)
        update.state["basis"] = leading_directions(grad, rank, update.step).to(narrow)
    basis = update.state["basis"].float()
    change = basis @ adam_direction(update, basis.t() @ grad)
    _move(update, change, basis.shape[1])


def apollo(update: Update) -> None:
    """Update one matrix along its gradient, each column as far as a projection says."""
    grad = _wide(update.grad.float())
    rank = rank_of(grad.shape, update.group["rank"])
    chance = generator(grad.device, (update.step - 1) // REFRESH)
    projection = torch.randn(rank, len(grad), generator=chance, device=grad.device)
    low = (projection @ grad).div_(rank**0.5)
    length = low.norm(dim=0).add_(1e-8)
    change = grad * (adam_direction(update, low).norm(dim=0) / length)
    change.mul_(_limited_growth(update.state, change.norm()))
    _move(update, change, rank)


def leading_directions(grad: Tensor, rank: int, seed: int = 0) -> Tensor:
    """Return the directions in which a matrix is greatest, as orthonormal columns.

    Args:
        grad: fp32 `(m, n)`.
        rank: Number of directions, at most `min(m, n)`.
        seed: Of the random products that they are found by.

    Returns:
        fp32 `(m, rank)`: the leading left singular vectors, nearly.
    """
    # Of a gradient that is not finite nothing can be said; the loss will tell, not this.
    grad = grad.nan_to_num(0.0, 0.0, 0.0)
    found = min(rank + _SPARE, *grad.shape)
    chance = generator(grad.device, seed)
    trial = torch.randn(grad.shape[1], found, generator=chance, device=grad.device)
    basis = torch.linalg.qr(grad @ trial).Q
    for _ in range(_ITERATIONS):
        basis = torch.linalg.qr(grad @ (grad.t() @ basis)).Q
    inside = basis.t() @ grad
    _, axes = torch.linalg.eigh(inside @ inside.t())  # ascending
    leading: Tensor = basis @ axes.flip(1)[:, :rank]
    return leading


def _wide(matrix: Tensor) -> Tensor:
    return matrix.t() if matrix.shape[0] > matrix.shape[1] else matrix


def _move(update: Update, change: Tensor, rank: int) -> None:
    scale = (min(update.weight.shape) / rank) ** 0.5
    update.move(change if change.shape == update.weight.shape else change.t(), scale)


def _limited_growth(state: dict[str, Any], norm: Tensor) -> Tensor:
    """Return the factor, at most 1, that keeps the norm of updates from jumping."""
    last = state.get("norm", torch.zeros_like(norm))
    allowed = torch.where(last > 0, last * _GROWTH, norm)
    factor = (allowed / norm.clamp_min(1e-30)).clamp_max_(1.0)
    state["norm"] = norm * factor
    return factor
