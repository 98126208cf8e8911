"""Slow 16-bit products are computed in fp32, and nothing else about a layer changes."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from autotune.knobs import dense
from autotune.knobs.blocks import dense_weight
from autotune.knobs.packed import PackedLinear


@pytest.fixture(autouse=True)
def _slow_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "cpu_has_bf16", lambda: False)
    monkeypatch.setattr(dense, "cpu_has_fp16", lambda: False)


DTYPES = (torch.bfloat16, torch.float16)


def _layer(kind: str, bias: bool = True, dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    torch.manual_seed(0)
    layer = Conv1D(8, 16) if kind == "conv1d" else nn.Linear(16, 8, bias=bias)
    return layer.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(("kind", "bias"), [("linear", True), ("linear", False), ("conv1d", True)])
def test_equals_the_rounded_fp32_layer(
    kind: str, bias: bool, recompute: bool, dtype: torch.dtype
) -> None:
    layer = _layer(kind, bias, dtype)
    before = dict(layer.named_parameters())
    dense.widen_linears(nn.Sequential(layer))
    assert all(parameter is before[name] for name, parameter in layer.named_parameters())
    x = torch.randn(2, 3, 16).to(dtype).requires_grad_(True)
    out = checkpoint(layer, x, use_reentrant=False) if recompute else layer(x)
    out.float().square().sum().backward()

    wide_x = x.detach().float().requires_grad_(True)
    weight = dense_weight(layer).detach().float().requires_grad_(True)
    offset = layer.bias.detach().float() if layer.bias is not None else None
    wide = nn.functional.linear(wide_x, weight, offset)
    assert torch.equal(out, wide.to(dtype))
    torch.autograd.backward(wide, 2 * out.detach().float())
    torch.testing.assert_close(x.grad.float(), wide_x.grad, atol=0.02, rtol=0.02)
    got = layer.weight.grad.t() if kind == "conv1d" else layer.weight.grad
    torch.testing.assert_close(got.float(), weight.grad, atol=0.02, rtol=0.02)
    assert {p.grad.dtype for p in layer.parameters()} == {dtype}


def _note(seen: list[torch.Tensor], tensor: torch.Tensor) -> torch.Tensor:
    seen.append(tensor)
    return tensor


def test_saves_bf16_only_and_no_input_for_a_frozen_weight() -> None:
    layer = dense.widen_linears(_layer("linear"))
    for trained, count in ((True, 2), (False, 1)):
        layer.weight.requires_grad_(trained)
        saved: list[torch.Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(partial(_note, saved), lambda t: t):
            layer(torch.randn(4, 16).bfloat16().requires_grad_(True))
        assert len(saved) == count
        assert {tensor.dtype for tensor in saved} == {torch.bfloat16}


def test_only_slow_dense_layers_are_widened_and_all_are_restored() -> None:
    model = nn.Sequential(
        _layer("linear"),
        nn.Linear(8, 8),
        PackedLinear(nn.Linear(16, 16).bfloat16(), 4),
        nn.LayerNorm(8).bfloat16(),
    )
    dense.widen_linears(model)
    assert ["forward" in vars(layer) for layer in model] == [True, False, False, False]
    dense.restore_linears(model)
    assert not any("forward" in vars(layer) for layer in model)


def test_fast_processors_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "cpu_has_bf16", lambda: True)
    assert dense.product_dtype(torch.zeros(1, dtype=torch.float16)) is torch.float32
    assert "forward" not in vars(dense.widen_linears(_layer("linear")))
    assert dense.product_dtype(torch.zeros(1, dtype=torch.bfloat16)) is torch.bfloat16
