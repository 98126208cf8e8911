"""Packed weights: codes, formats, products, gradients, memory, and what peft may do with them."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from autotune.core.errors import ModelError
from autotune.knobs.bytes import storage_bytes
from autotune.knobs.packed import (
    PackedLinear,
    choose_grid,
    pack_blocks,
    unpack_model,
)
from autotune.knobs.packed_formats import (
    WIDTHS,
    Grid,
    group_size,
    normal_levels,
    pack,
    unpack,
)
from tests import tiny_models as tiny

GRIDS = [Grid(bits=bits) for bits in WIDTHS]
GRIDS += [Grid(bits=bits, group=group) for bits in (3, 4) for group in (32, 128)]
GRIDS += [Grid(bits=4, format="nf4"), Grid(bits=4, format="nf4", group=32)]
GRIDS += [Grid(bits=8, format="float8")]


def _packed(weight: torch.Tensor, grid: Grid) -> PackedLinear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = nn.Parameter(weight)
    return PackedLinear(layer, grid)


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


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_bits_per_weight(grid: Grid) -> None:
    width = 256
    overhead = {"integer": 2 * 16 / grid.group, "nf4": 16 / grid.group, "float8": 32 / width}
    packed = PackedLinear(nn.Linear(width, 64, bias=False), grid)
    bits = storage_bytes(packed.buffers()) * 8 / (width * 64)
    assert bits == grid.bits + overhead[grid.format]
    assert not list(packed.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_packing_what_was_packed_changes_nothing(grid: Grid, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    once = _packed(torch.randn(16, 256, dtype=dtype), grid).dequantise(torch.float32)
    twice = _packed(once, grid).dequantise(torch.float32)
    torch.testing.assert_close(twice, once, atol=2e-3, rtol=2e-3)


def test_error_falls_with_bits_and_with_smaller_groups() -> None:
    torch.manual_seed(0)
    weight = torch.randn(64, 256)

    def error(grid: Grid) -> float:
        return float((_packed(weight, grid).dequantise(torch.float32) - weight).norm())

    by_bits = [error(Grid(bits=bits)) for bits in WIDTHS]
    # One bit more halves the step; the range of a group stays.
    for (bits, worse), (more, better) in itertools.pairwise(zip(WIDTHS, by_bits, strict=True)):
        assert better < worse / 2 ** (more - bits) * 1.2
    assert error(Grid(bits=3, group=32)) < error(Grid(bits=3)) < error(Grid(bits=3, group=128))
    # Both take 4.25 bits for each weight.
    assert error(Grid(bits=4, format="nf4")) < error(Grid(bits=4, group=128))
    assert error(Grid(bits=8, format="float8")) < error(Grid(bits=5))


def test_normal_levels_are_those_of_the_paper() -> None:
    levels = normal_levels()
    assert len(levels) == 16
    assert (levels[0], levels[7], levels[15]) == (-1.0, 0.0, 1.0)
    assert list(levels) == sorted(levels)
    # Dettmers et al. 2023, appendix E.
    assert levels[1] == pytest.approx(-0.6961928, abs=1e-6)
    assert levels[8] == pytest.approx(0.0795803, abs=1e-6)


def test_small_floats_hold_what_fits_and_outliers() -> None:
    weight = torch.tensor([[448.0, 1.0, -0.875, 0.0], [1e-3, -2e-3, 5e-4, 0.0]])
    rebuilt = _packed(weight, Grid(bits=8, format="float8")).dequantise(torch.float32)
    torch.testing.assert_close(rebuilt, weight, rtol=2.0**-4, atol=1e-9)
    assert torch.equal(rebuilt[0], weight[0])


@pytest.mark.parametrize("format", ["nf4", "float8"])
def test_formats_have_widths_of_their_own(format: str) -> None:
    with pytest.raises(ValueError, match=f"widths of {format} are"):
        Grid(bits=2, format=format)


def test_constant_groups_and_odd_widths() -> None:
    layer = nn.Linear(30, 3, bias=False)
    with torch.no_grad():
        layer.weight.fill_(0.5)
    assert group_size(30) == 30
    assert group_size(96) == 32
    assert group_size(96, 32) == 32
    with pytest.raises(ModelError, match="groups of 128 weights do not divide rows of 96"):
        group_size(96, 128)
    torch.testing.assert_close(
        PackedLinear(layer, 4).dequantise(torch.float32), torch.full((3, 30), 0.5)
    )


def test_unknown_width_is_refused() -> None:
    with pytest.raises(ValueError, match="but got 7"):
        PackedLinear(nn.Linear(8, 8), 7)


@pytest.mark.parametrize("grid", [Grid(bits=4), *GRIDS[-2:]], ids=str)
@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_forward_and_backward_are_those_of_the_dense_layer(kind: str, grid: Grid) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(64, 16) if kind == "linear" else Conv1D(16, 64)
    packed = PackedLinear(layer, grid)
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


def test_autocast_gives_the_dtype_of_a_dense_layer() -> None:
    packed = PackedLinear(nn.Linear(64, 64), 4)
    x = torch.randn(2, 64, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = packed(x)
        dense = packed.to_dense()(x)
    assert out.dtype is dense.dtype is torch.bfloat16
    torch.testing.assert_close(out, dense, atol=0.05, rtol=0.05)
    out.float().sum().backward()
    assert x.grad.dtype is torch.float32


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


def test_weights_in_layers_of_another_kind_are_not_passed_over() -> None:
    model = tiny.build("llama")
    block = model.model.layers[0]
    block.experts = nn.Parameter(torch.zeros(4, 256, 256))
    with pytest.raises(ModelError, match="not in plain linear layers, so 4 bits cannot be had"):
        pack_blocks(model, 4)


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("family", ["gpt2", "t5", "vit"])
def test_every_width_packs_layers_of_every_kind(family: str, bits: int) -> None:
    model = pack_blocks(tiny.build(family).eval(), bits)
    with torch.no_grad():
        packed = tiny.output(model, family)
        torch.testing.assert_close(tiny.output(unpack_model(model), family), packed)


def test_the_chosen_grid_is_forgotten_when_deployed() -> None:
    model = tiny.build("llama")
    choose_grid(model, group=32)
    choose_grid(model, format="nf4")
    pack_blocks(model, 4)
    grids = {m.grid for m in model.modules() if isinstance(m, PackedLinear)}
    assert grids == {Grid(bits=4, group=32, format="nf4")}
    pack_blocks(unpack_model(model), 4)
    grids = {m.grid for m in model.modules() if isinstance(m, PackedLinear)}
    assert grids == {Grid(bits=4)}
