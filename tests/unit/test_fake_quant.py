"""Layers that train under rounding: what they compute, keep and become."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from autotune.core.errors import ModelError
from autotune.core.knob import run_stage
from autotune.knobs import dense
from autotune.knobs.blocks import dense_weight
from autotune.knobs.bytes import storage_bytes
from autotune.knobs.checkpointing import CHECKPOINTING
from autotune.knobs.fake_quant import bake, fake_quantise_blocks, round_weight
from autotune.knobs.packed import PackedLinear, choose_grid, unpack_model
from autotune.knobs.packed_formats import Grid
from autotune.knobs.precision import PRECISION
from autotune.knobs.prune_ffn import PRUNE_FFN
from autotune.knobs.prune_heads import PRUNE_HEADS
from autotune.knobs.qat import QAT_BITS
from autotune.knobs.stages import ADAPT, COMPRESS, DEPLOY, PARALLELISE, Adaptation
from tests import tiny_models as tiny

KNOBS = (PRECISION, PRUNE_FFN, PRUNE_HEADS, QAT_BITS, CHECKPOINTING)
"""In order of application."""

FAMILIES = ("gpt2", "llama", "bert", "t5", "vit")


class _Block(nn.Module):
    """What transformers would mark as a block."""

    def __new__(cls, layer: nn.Module) -> nn.Module:
        from transformers.modeling_layers import GradientCheckpointingLayer

        block = GradientCheckpointingLayer()
        block.layer = layer
        return nn.Sequential(block)


def _faked(kind: str, bits: int, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    layer = nn.Linear(64, 16) if kind == "linear" else Conv1D(16, 64)
    layer.to(dtype)
    fake_quantise_blocks(_Block(layer), bits)
    return layer


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_gradients_pass_the_rounding(kind: str, bits: int) -> None:
    layer = _faked(kind, bits)
    x = torch.randn(2, 5, 64, requires_grad=True)
    layer(x).square().sum().backward()

    weight = round_weight(dense_weight(layer).detach(), Grid(bits=bits), torch.float32)
    assert len(weight[0].unique()) <= 2**bits
    weight.requires_grad_(True)
    bias = layer.bias.detach().clone().requires_grad_(True)
    other = x.detach().clone().requires_grad_(True)
    nn.functional.linear(other, weight, bias).square().sum().backward()
    torch.testing.assert_close(x.grad, other.grad)
    torch.testing.assert_close(layer.bias.grad, bias.grad)
    got = layer.weight.grad.t() if kind == "conv1d" else layer.weight.grad
    torch.testing.assert_close(got, weight.grad)


def _note(seen: list[torch.Tensor], tensor: torch.Tensor) -> torch.Tensor:
    seen.append(tensor)
    return tensor


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_no_copy_of_a_weight_is_kept_for_backward(kind: str) -> None:
    layer = _faked(kind, 4)
    x = torch.randn(2, 64)
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(partial(_note, saved), lambda t: t):
        layer(x)
        assert {t.data_ptr() for t in saved} == {x.data_ptr(), layer.weight.data_ptr()}
        saved.clear()
        layer.weight.requires_grad_(False)
        layer(x.requires_grad_(True))
    assert {t.data_ptr() for t in saved} == {layer.weight.data_ptr()}


def test_checkpointing_recomputes_it() -> None:
    layer = _faked("conv1d", 3)
    x = torch.randn(2, 64, requires_grad=True)
    gradients = []
    for run in (layer, partial(checkpoint, layer, use_reentrant=False)):
        run(x).square().sum().backward()
        gradients.append((x.grad, layer.weight.grad))
        x.grad = layer.weight.grad = None
    assert all(map(torch.equal, *gradients))


@pytest.mark.parametrize("fast", [False, True])
def test_bf16_weights_are_rounded_in_the_dtype_of_the_product(
    fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dense, "cpu_has_bf16", lambda: fast)
    layer = _faked("linear", 4, torch.bfloat16)
    dense.widen_linears(layer)
    assert "forward" not in vars(layer)
    x = torch.randn(3, 64).bfloat16().requires_grad_(True)
    out = layer(x)
    wide = torch.bfloat16 if fast else torch.float32
    rounded = round_weight(layer.weight.detach(), Grid(bits=4), wide)
    expected = nn.functional.linear(x.detach().to(wide), rounded, layer.bias.detach().to(wide))
    assert torch.equal(out, expected.bfloat16())
    out.sum().backward()
    assert {x.grad.dtype, layer.weight.grad.dtype, layer.bias.grad.dtype} == {torch.bfloat16}


def test_autocast_gives_the_dtype_of_a_dense_layer_and_gradients_that_of_the_weight() -> None:
    layer = _faked("linear", 8)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(torch.randn(3, 64))
    assert out.dtype is torch.bfloat16
    out.float().sum().backward()
    assert {p.grad.dtype for p in layer.parameters()} == {torch.float32}


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_was_trained_is_what_is_packed(family: str, bits: int) -> None:
    model = fake_quantise_blocks(tiny.build(family).eval(), bits)
    with torch.no_grad():
        trained = tiny.output(model, family)
        plain = tiny.output(tiny.build(family).eval(), family)
    assert not torch.allclose(trained, plain, atol=1e-4)
    bake(model, bits)
    assert any(isinstance(m, PackedLinear) for m in model.modules())
    with torch.no_grad():
        torch.testing.assert_close(tiny.output(model, family), trained, atol=1e-4, rtol=1e-4)
        unpack_model(model)
        torch.testing.assert_close(tiny.output(model, family), trained, atol=1e-4, rtol=1e-4)
    assert {type(m) for m in model.modules()} == {type(m) for m in tiny.build(family).modules()}


CONFIGS = [
    {"qat.bits": 4},
    {"qat.bits": 2, "checkpointing": "full", "precision": "bf16"},
    {"qat.bits": 3, "prune.ffn": 0.5, "prune.heads": 0.5},
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("slow", [False, True])
def test_training_under_rounding_learns(
    config: dict[str, object], slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dense, "cpu_has_bf16", lambda: not slow)
    dtype = "bfloat16" if "precision" in config else "float32"
    state = Adaptation(model=tiny.build("llama", dtype=dtype))
    model = run_stage(ADAPT, state, KNOBS, config).model
    model = run_stage(PARALLELISE, model, KNOBS, config)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(4):
        loss = tiny.loss(model, "llama")
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.05
    moved = [n for n, p in model.named_parameters() if ".layers." in n and p.ndim == 2]
    assert len(moved) == 7 * tiny.LAYERS
    assert all(not torch.equal(model.get_parameter(n), before[n]) for n in moved)
    model.eval()
    with torch.no_grad():
        trained = tiny.loss(model, "llama")
        model = run_stage(COMPRESS, model, KNOBS, config)
        assert tiny.loss(model, "llama") == pytest.approx(float(trained), rel=1e-3)
        model = run_stage(DEPLOY, model, KNOBS, config)
        tolerance = 2e-2 if "precision" in config else 1e-4
        assert tiny.loss(model, "llama") == pytest.approx(float(trained), rel=tolerance)


def test_weights_stay_wide_in_training_and_shrink_when_compressed() -> None:
    model = tiny.build("llama")
    wide = storage_bytes([*model.parameters(), *model.buffers()])
    choose_grid(model, group=32)
    fake_quantise_blocks(model, 2)
    assert storage_bytes([*model.parameters(), *model.buffers()]) == wide
    inside = sum(p.numel() for n, p in model.named_parameters() if ".layers." in n and p.ndim == 2)
    bake(model, 2)
    packed = storage_bytes([*model.parameters(), *model.buffers()])
    assert wide - packed == inside * 4 - inside * (2 + 32 / 32) / 8


def test_what_cannot_be_rounded_is_refused() -> None:
    model = tiny.build("llama")
    choose_grid(model, group=128)
    with pytest.raises(ModelError, match="groups of 128 weights do not divide rows of 32"):
        fake_quantise_blocks(model, 4)
    model = tiny.build("llama")
    model.model.layers[0].experts = nn.Parameter(torch.zeros(4, 256, 256))
    with pytest.raises(ModelError, match="not in plain linear layers, so 4 bits") as caught:
        fake_quantise_blocks(model, 4)
    assert caught.value.help == "set qat.bits to 16"
