"""Products of integers: exact whatever multiplies them, and close to what was rounded."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from autotune.core.errors import ModelError
from autotune.knobs.integer_products import (
    IntegerLinear,
    has_kernel,
    multiply_integers,
    round_inputs,
    round_tokens,
)
from autotune.knobs.packed import PackedLinear, pack_blocks
from tests import tiny_models as tiny


@pytest.mark.parametrize("shape", [(40, 64, 96), (3, 64, 50), (20, 30, 7), (17, 2048, 8)])
def test_integers_are_multiplied_exactly_whatever_the_kernel(
    shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, width, out = shape
    torch.manual_seed(0)
    a = torch.randint(-127, 128, (rows, width), dtype=torch.int8)
    b = torch.randint(-128, 128, (out, width), dtype=torch.int8)
    a[0], b[0] = 127, -128  # the greatest sum that there can be
    exact = a.long() @ b.long().t()
    for fast in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda fast=fast: fast)
        assert torch.equal(multiply_integers(a, b).long(), exact)


def test_tokens_are_rounded_each_by_its_own_scale() -> None:
    x = torch.tensor([[1.0, -0.5, 0.25], [1000.0, 10.0, 0.0], [0.0, 0.0, 0.0]])
    values, scale = round_tokens(x)
    assert values.dtype is torch.int8
    assert bool(((values * scale - x).abs() <= scale / 2).all())
    assert torch.equal(values[:, 0], torch.tensor([127, 127, 0], dtype=torch.int8))


@pytest.mark.parametrize("width", [96, 30])
def test_rounded_inputs_give_the_product_with_the_rounded_input(width: int) -> None:
    torch.manual_seed(0)
    packed = PackedLinear(Conv1D(24, width), 8)
    x = torch.randn(2, 20, width)
    values, scale = round_tokens(x.flatten(0, 1))
    expected = packed((values * scale).view_as(x))
    round_inputs(nn.Sequential(packed))
    assert isinstance(packed, IntegerLinear)
    with torch.no_grad():
        torch.testing.assert_close(packed(x), expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(RuntimeError, match=r"use torch\.no_grad"):
        packed(x.requires_grad_(True))


def test_activation_bits_need_layers_of_eight_bits() -> None:
    with pytest.raises(ModelError, match="no layers of 8-bit integers"):
        round_inputs(pack_blocks(tiny.build("llama"), 4))


def test_autocast_changes_the_dtype_and_not_the_sums() -> None:
    torch.manual_seed(0)
    layer = PackedLinear(nn.Linear(64, 32), 8)
    round_inputs(nn.Sequential(layer))
    x = torch.randn(3, 64)
    with torch.no_grad():
        exact = layer(x)
        with torch.autocast("cpu", torch.bfloat16):
            narrow = layer(x)
    assert narrow.dtype is torch.bfloat16
    assert torch.equal(narrow, exact.bfloat16())


@pytest.mark.parametrize(
    ("rows", "width", "out", "taken"),
    [(17, 64, 96, True), (16, 64, 96, False), (17, 30, 96, False), (17, 64, 50, False)],
)
def test_the_kernel_of_cuda_takes_some_shapes_only(
    rows: int, width: int, out: int, taken: bool
) -> None:
    a, b = (torch.empty(n, width, dtype=torch.int8, device="meta") for n in (rows, out))
    assert has_kernel(a, b) is taken
