"""Mean cross-entropy over a vocabulary without the logits of all tokens ever existing at once.

Logits of one piece of the tokens are computed, reduced to a loss per token, and dropped; backward
computes them again, piece by piece, from the hidden states. Loss and gradients are those of the
plain computation, to rounding. In place of logits and their gradient, `(tokens, vocab)` each, only
a `1 / chunks` part is alive, for one product more per token. Under autocast the products, and those
of backward with them, are in its dtype, and nothing is kept in it.

References:
    Wijmans et al. 2024, arXiv:2411.09009.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from autotune.knobs.dense import multiply

if TYPE_CHECKING:
    from torch import Tensor

IGNORED = -100
"""Label of tokens that do not count, as everywhere in torch."""


def chunked_cross_entropy(
    hidden: Tensor, head_weight: Tensor, labels: Tensor, chunks: int, bias: Tensor | None = None
) -> Tensor:
    """Return the mean cross-entropy of `hidden @ head_weight.T + bias` against `labels`.

    Args:
        hidden: Hidden states `(..., width)`; shift them against the labels beforehand.
        head_weight: Weight of the output layer `(vocab, width)`.
        labels: Class of each token `(...)`; `IGNORED` ones do not count.
        chunks: Pieces of the tokens, at least 1.
        bias: Of the output layer `(vocab,)`, if it has one.

    Returns:
        A scalar in fp32; NaN if no token counts, as `F.cross_entropy` has it.
    """
    rows, targets = hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1)
    device = rows.device.type
    narrow = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    how = _How(chunks, narrow or head_weight.dtype)
    with torch.autocast(device, enabled=False):
        loss: Tensor = _ChunkedLoss.apply(rows, head_weight, bias, targets, how)  # type: ignore[no-untyped-call]  # untyped there
    return loss


class _How(NamedTuple):
    """In how many pieces, and in which dtype products are computed."""

    chunks: int
    dtype: torch.dtype


def _logits(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    logits = multiply(rows, weight.t())
    return (logits if bias is None else logits + bias).float()


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, how: _How
    ) -> Tensor:
        counted = targets != IGNORED
        normaliser = torch.empty(len(rows), device=rows.device)
        total = torch.zeros((), device=rows.device)
        matrix = weight.to(how.dtype)
        for part in _parts(len(rows), how.chunks):
            logits = _logits(rows[part].to(how.dtype), matrix, bias)
            normaliser[part] = logits.logsumexp(1)
            chosen = logits.gather(1, targets[part].clamp_min(0)[:, None])[:, 0]
            total += ((normaliser[part] - chosen) * counted[part]).sum()
        ctx.save_for_backward(rows, weight, bias, targets, normaliser)
        ctx.how = how
        return total / counted.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, bias, targets, normaliser = ctx.saved_tensors
        need_rows, need_weight, need_bias = ctx.needs_input_grad[:3]
        counted = targets != IGNORED
        share = counted * (grad / counted.sum())
        grad_rows = torch.empty_like(rows) if need_rows else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if need_weight else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if need_bias else None
        matrix = weight.to(ctx.how.dtype)
        for part in _parts(len(rows), ctx.how.chunks):
            some = rows[part].to(ctx.how.dtype)
            wrong = _logits(some, matrix, bias).sub_(normaliser[part, None]).exp_()
            at = targets[part].clamp_min(0)[:, None]
            wrong.scatter_add_(1, at, wrong.new_full((), -1.0).expand(at.shape))
            wrong.mul_(share[part, None])
            if grad_bias is not None:
                grad_bias += wrong.sum(0)
            narrow = wrong.to(ctx.how.dtype)
            if grad_rows is not None:
                grad_rows[part] = multiply(narrow, matrix)
            if grad_weight is not None:
                grad_weight += multiply(narrow.t(), some)
        return grad_rows, _like(grad_weight, weight), _like(grad_bias, bias), None, None


def _parts(count: int, chunks: int) -> list[slice]:
    size = max(1, -(-count // chunks))
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _like(grad: Tensor | None, tensor: Tensor | None) -> Tensor | None:
    return None if grad is None or tensor is None else grad.to(tensor.dtype)
