"""The loss in pieces equals the plain loss, in value and in gradients, and keeps fewer bytes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from autotune.knobs.chunked_loss import chunked_cross_entropy

TOKENS, WIDTH, VOCAB = 37, 16, 101


def _problem(*, bias: bool, dtype: torch.dtype = torch.float32) -> list[Tensor | None]:
    chance = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, WIDTH, generator=chance).to(dtype).requires_grad_(True)
    weight = torch.randn(VOCAB, WIDTH, generator=chance).to(dtype).requires_grad_(True)
    offset = torch.randn(VOCAB, generator=chance).to(dtype).requires_grad_(True) if bias else None
    labels = torch.randint(0, VOCAB, (TOKENS,), generator=chance)
    labels[3:9] = -100
    return [hidden, weight, labels, offset]


def _gradients(loss: Tensor, problem: list[Tensor | None]) -> list[Tensor]:
    trained = [t for t in problem if t is not None and t.requires_grad]
    return list(torch.autograd.grad(loss / 3, trained))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("chunks", [1, 4, 16, 1000])
def test_equals_the_plain_loss(chunks: int, bias: bool) -> None:
    problem = _problem(bias=bias)
    hidden, weight, labels, offset = problem
    plain = functional.cross_entropy(functional.linear(hidden, weight, offset), labels)
    chunked = chunked_cross_entropy(hidden, weight, labels, chunks, offset)
    torch.testing.assert_close(chunked, plain, atol=1e-6, rtol=1e-6)
    for got, expected in zip(_gradients(chunked, problem), _gradients(plain, problem), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)


def test_bf16_gives_bf16_gradients_near_those_of_fp32() -> None:
    problem = _problem(bias=False, dtype=torch.bfloat16)
    hidden, weight, labels, _ = problem
    wide = [
        hidden.detach().float().requires_grad_(True),
        weight.detach().float().requires_grad_(True),
    ]
    plain = functional.cross_entropy(wide[0] @ wide[1].t(), labels)
    chunked = chunked_cross_entropy(hidden, weight, labels, 4)
    assert chunked.dtype is torch.float32
    torch.testing.assert_close(chunked, plain, atol=2e-2, rtol=2e-2)
    for got, expected in zip(_gradients(chunked, problem), _gradients(plain, wide), strict=True):
        assert got.dtype is torch.bfloat16
        torch.testing.assert_close(got.float(), expected, atol=2e-3, rtol=5e-2)


def test_autocast_narrows_products_forward_and_backward_alike() -> None:
    problem = _problem(bias=True)
    hidden, weight, labels, offset = problem
    with torch.autocast("cpu", torch.bfloat16):
        chunked = chunked_cross_entropy(hidden, weight, labels, 4, offset)
    narrow = [t.detach().bfloat16().requires_grad_(True) for t in (hidden, weight)]
    bf16 = chunked_cross_entropy(*narrow, labels, 4, offset)
    assert torch.equal(chunked, bf16)
    got = _gradients(chunked, problem)
    for gradient, like in zip(got, _gradients(bf16, [*narrow, None, offset]), strict=True):
        assert gradient.dtype is torch.float32
        torch.testing.assert_close(gradient, like.float(), atol=1e-6, rtol=2**-8)


def test_axes_in_front_are_flattened() -> None:
    hidden, weight, labels, _ = _problem(bias=False)
    folded = chunked_cross_entropy(hidden[:36].view(4, 9, WIDTH), weight, labels[:36].view(4, 9), 4)
    torch.testing.assert_close(folded, chunked_cross_entropy(hidden[:36], weight, labels[:36], 1))


def test_a_frozen_head_gets_no_gradient() -> None:
    hidden, weight, labels, _ = _problem(bias=False)
    weight.requires_grad_(False)
    chunked_cross_entropy(hidden, weight, labels, 4).backward()
    assert weight.grad is None
    assert hidden.grad is not None


def test_keeps_no_logits() -> None:
    saved: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    hidden, weight, labels, _ = _problem(bias=False)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        chunked_cross_entropy(hidden, weight, labels, 4)
    assert max(saved) == max(TOKENS * WIDTH, VOCAB * WIDTH)
    assert TOKENS * VOCAB not in saved


def test_nothing_counted_is_nan_as_in_torch() -> None:
    hidden, weight, labels, _ = _problem(bias=False)
    assert bool(chunked_cross_entropy(hidden, weight, torch.full_like(labels, -100), 4).isnan())
