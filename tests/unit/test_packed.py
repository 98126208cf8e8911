"""Packed weights: codes, products, gradients, memory, and what peft may do with them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from autotune.core.errors import ModelError
from autotune.knobs.bytes import storage_bytes
from autotune.knobs.packed import (
    WIDTHS,
    PackedLinear,
    group_size,
    pack,
    pack_blocks,
    quantise,
    unpack,
    unpack_model,
)
from tests import tiny_models as tiny


@pytest.mark.parametrize("count", [8, 24, 13])
@pytest.mark.parametrize("bits", WIDTHS)
def test_pack_is_the_inverse_of_unpack(bits: int, count: int) -> None:
    values = torch.randint(0, 2**bits, (count,), dtype=torch.uint8)
    packed = pack(values, bits)
    assert packed.numel() == -(-count // 8) * bits
    assert torch.equal(unpack(packed, bits, count), values)


@pytest.mark.parametrize("bits", WIDTHS)
def test_error_is_at_most_half_a_step(bits: int) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(128, 16)
    weight = layer.weight.detach()
    packed = PackedLinear(layer, bits)
    groups = weight.view(-1, 64)
    step = (groups.amax(1) - groups.amin(1)) / (2**bits - 1)
    error = (packed.dequantise(torch.float32) - weight).view(-1, 64).abs().amax(1)
    assert bool((error <= step * 0.5 + 2e-3 * weight.abs().max()).all())


@pytest.mark.parametrize(("bits", "per_weight"), [(2, 2.5), (4, 4.5), (6, 6.5), (8, 8.5)])
def test_bits_per_weight(bits: int, per_weight: float) -> None:
    packed = PackedLinear(nn.Linear(256, 64, bias=False), bits)
    assert storage_bytes(packed.buffers()) * 8 / (256 * 64) == per_weight
    assert not list(packed.parameters())


def test_constant_groups_and_odd_widths() -> None:
    layer = nn.Linear(30, 3, bias=False)
    with torch.no_grad():
        layer.weight.fill_(0.5)
    assert group_size(30) == 30
    assert group_size(96) == 32
    torch.testing.assert_close(
        PackedLinear(layer, 4).dequantise(torch.float32), torch.full((3, 30), 0.5)
    )


def test_unknown_width_is_refused() -> None:
    with pytest.raises(ValueError, match="but got 7"):
        PackedLinear(nn.Linear(8, 8), 7)


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_forward_and_backward_are_those_of_the_dense_layer(kind: str) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(64, 16) if kind == "linear" else Conv1D(16, 64)
    packed = PackedLinear(layer, 4)
    dense = packed.to_dense()
    assert type(dense) is type(layer)
    assert dense.weight.shape == layer.weight.shape
    x = torch.randn(3, 5, 64, requires_grad=True)
    other = x.detach().clone().requires_grad_(True)
    packed(x).square().sum().backward()
    dense(other).square().sum().backward()
    torch.testing.assert_close(x.grad, other.grad)
    assert packed.bias.grad is None


def test_checkpointing_recomputes_it() -> None:
    packed = PackedLinear(nn.Linear(64, 64), 4)
    x = torch.randn(2, 64, requires_grad=True)
    other = x.detach().clone().requires_grad_(True)
    checkpoint(packed, x, use_reentrant=False).sum().backward()
    packed(other).sum().backward()
    assert torch.equal(x.grad, other.grad)


def test_nothing_dense_is_saved_for_backward() -> None:
    packed = PackedLinear(nn.Linear(64, 64), 4)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: saved.append(t.numel()) or t, lambda t: t
    ):
        packed(torch.randn(2, 64, requires_grad=True))
    assert sum(saved) == 0


def test_the_stand_in_answers_for_metadata_and_refuses_values() -> None:
    packed = PackedLinear(nn.Linear(64, 32).bfloat16(), 4)
    assert packed.weight.shape == (32, 64)
    assert packed.weight.dtype is torch.bfloat16
    assert bool(packed.weight.isnan().all())
    assert packed.weight.untyped_storage().nbytes() == 2
    with pytest.raises(RuntimeError, match="single memory location"):
        packed.weight.data += torch.ones(32, 64)


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
def test_blocks_are_packed_and_the_rest_is_not(family: str) -> None:
    model = tiny.build(family)
    before = storage_bytes(model.parameters())
    names = {name for name, _ in model.named_modules()}
    pack_blocks(model, 4)
    packed = [name for name, m in model.named_modules() if isinstance(m, PackedLinear)]
    assert len(packed) == {"gpt2": 4, "llama": 7, "bert": 6}[family] * tiny.LAYERS
    assert {name for name, _ in model.named_modules()} == names
    assert storage_bytes([*model.parameters(), *model.buffers()]) < 0.7 * before
    if family == "gpt2":
        assert model.lm_head.weight is model.transformer.wte.weight


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
def test_unpacked_model_gives_the_same_output(family: str) -> None:
    model = pack_blocks(tiny.build(family).eval(), 4)
    kinds = {type(m) for m in tiny.build(family).modules()}
    with torch.no_grad():
        packed = tiny.output(model, family)
        dense = tiny.output(unpack_model(copy.deepcopy(model)), family)
    torch.testing.assert_close(dense, packed)
    assert {type(m) for m in unpack_model(model).modules()} == kinds


def test_state_survives_saving(tmp_path) -> None:
    model, other = (pack_blocks(tiny.build("llama", seed=s), 4) for s in (0, 1))
    torch.save(model.state_dict(), tmp_path / "state.pt")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(tiny.output(model, "llama"), tiny.output(other, "llama"))


def test_eight_bits_are_closer_than_four() -> None:
    weight = torch.randn(64, 256)
    errors = []
    for bits in (4, 8):
        layer = nn.Linear(256, 64, bias=False)
        layer.weight = nn.Parameter(weight)
        errors.append(float((PackedLinear(layer, bits).dequantise(torch.float32) - weight).norm()))
    assert errors[1] < errors[0] / 10
    assert quantise(weight, 8).codes.numel() == weight.numel()


def test_weights_in_layers_of_another_kind_are_not_passed_over() -> None:
    model = tiny.build("llama")
    block = model.model.layers[0]
    block.experts = nn.Parameter(torch.zeros(4, 256, 256))
    with pytest.raises(ModelError, match="not in plain linear layers, so 4 bits cannot be had"):
        pack_blocks(model, 4)
