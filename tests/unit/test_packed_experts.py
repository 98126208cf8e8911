"""Experts in one tensor, packed: what they compute, weigh, and become again."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from autotune.core.errors import ModelError
from autotune.knobs.bytes import storage_bytes
from autotune.knobs.fake_quant import fake_quantise_blocks
from autotune.knobs.integer_products import round_inputs
from autotune.knobs.packed import choose_grid, pack_blocks, unpack_model
from autotune.knobs.packed_experts import PackedMatrices
from autotune.knobs.packed_formats import Grid
from tests import tiny_models as tiny

EXPERTS, PER_TOKEN = 4, 2

CONFIGS: dict[str, dict[str, object]] = {
    "mixtral": {"num_local_experts": EXPERTS, "num_experts_per_tok": PER_TOKEN},
    "qwen3_moe": {
        "num_experts": EXPERTS, "num_experts_per_tok": PER_TOKEN, "head_dim": 8,
        "moe_intermediate_size": tiny.FFN, "decoder_sparse_step": 1, "mlp_only_layers": [],
    },
    "gpt_oss": {"num_local_experts": EXPERTS, "num_experts_per_tok": PER_TOKEN, "head_dim": 8},
}  # fmt: skip


def _model(family: str) -> nn.Module:
    common = tiny.CONFIGS["llama"]
    config = AutoConfig.for_model(family, **{**common, **CONFIGS[family]})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    model.set_experts_implementation("eager")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model.eval()


def _loss(model: nn.Module) -> torch.Tensor:
    ids = tiny.inputs("llama")["input_ids"]
    return model(input_ids=ids, labels=ids, use_cache=False).loss


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("family", CONFIGS)
def test_packed_experts_compute_what_the_rounded_dense_ones_do(family: str, bits: int) -> None:
    model = pack_blocks(_model(family), bits)
    packed = [m for m in model.modules() if isinstance(m, PackedMatrices)]
    assert len(packed) == 2 * tiny.LAYERS
    model.model.embed_tokens.requires_grad_(True)
    gradients = []
    for _ in range(2):
        model.zero_grad()
        loss = _loss(model)
        loss.backward()
        gradients.append((loss.detach(), model.model.embed_tokens.weight.grad.clone()))
        unpack_model(model)
    for before, after in zip(*gradients, strict=True):
        torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-4)
    plain = _model(family)
    assert {type(m) for m in model.modules()} == {type(m) for m in plain.modules()}
    shapes = {name: p.shape for name, p in plain.named_parameters()}
    assert {name: p.shape for name, p in model.named_parameters()} == shapes
    assert float(loss.detach()) == pytest.approx(
        float(_loss(plain).detach()), rel=0.01 if bits == 8 else 0.2
    )


GRIDS = [Grid(bits=3), Grid(bits=4, format="nf4"), Grid(bits=8, format="float8")]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("transposed", [False, True])
def test_bits_per_weight_are_those_of_a_linear_layer(grid: Grid, transposed: bool) -> None:
    rows, width = 24, 128
    torch.manual_seed(0)
    weight = torch.randn(3, rows, width)
    packed = PackedMatrices(weight.mT if transposed else weight, grid, transposed=transposed)
    overhead = {"integer": 32 / grid.group, "nf4": 16 / grid.group, "float8": 32 / width}
    assert storage_bytes(packed.buffers()) * 8 == weight.numel() * (
        grid.bits + overhead[grid.format]
    )
    dense = packed.to_dense().detach()
    assert dense.shape == (weight.mT if transposed else weight).shape
    rebuilt = dense.mT if transposed else dense
    assert float((rebuilt - weight).norm()) < 0.3 * float(weight.norm())
    x = torch.randn(5, width)
    torch.testing.assert_close(packed(x, 2), x @ rebuilt[2].t())


def test_deployed_experts_load_with_plain_transformers(tmp_path) -> None:
    model = _model("mixtral")
    choose_grid(model, group=32)
    model = unpack_model(pack_blocks(model, 3))
    model.save_pretrained(tmp_path)
    restored = type(model).from_pretrained(tmp_path).eval()
    restored.set_experts_implementation("eager")
    with torch.no_grad():
        assert torch.equal(_loss(restored), _loss(model))


def test_what_is_not_done_for_experts_is_refused() -> None:
    with pytest.raises(ModelError, match="not in plain linear layers"):
        fake_quantise_blocks(_model("mixtral"), 4)
    with pytest.raises(ModelError, match="inputs of the experts of MixtralForCausalLM"):
        round_inputs(pack_blocks(_model("mixtral"), 8))
