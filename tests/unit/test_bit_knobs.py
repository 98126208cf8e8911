"""Knobs of bit widths: what they do to a model from stage to stage, and what they refuse."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from autotune.core.context import Context, ModelFacts
from autotune.core.knob import Knob, run_stage
from autotune.knobs.bytes import storage_bytes
from autotune.knobs.cache_bits import CACHE_BITS
from autotune.knobs.deploy_activations import DEPLOY_ACTIVATION_BITS
from autotune.knobs.deploy_bits import DEPLOY_BITS
from autotune.knobs.integer_products import IntegerLinear
from autotune.knobs.lora import LORA_RANK
from autotune.knobs.packed import PackedLinear
from autotune.knobs.qat import QAT_BITS
from autotune.knobs.stages import ADAPT, COMPRESS, DEPLOY, EVALUATE, Adaptation, EvalPlan
from autotune.knobs.weight_bits import WEIGHT_BITS
from autotune.knobs.weight_format import WEIGHT_FORMAT
from autotune.knobs.weight_group import WEIGHT_GROUP
from tests import tiny_models as tiny

KNOBS = (
    WEIGHT_GROUP, WEIGHT_FORMAT, WEIGHT_BITS, LORA_RANK, QAT_BITS, DEPLOY_BITS,
    DEPLOY_ACTIVATION_BITS, CACHE_BITS,
)  # fmt: skip
"""In order of application."""


def _adapted(family: str, config: dict[str, object]) -> nn.Module:
    return run_stage(ADAPT, Adaptation(model=tiny.build(family)), KNOBS, config).model


LOW_BITS = [
    *({"weight_bits": bits} for bits in (8, 6, 5, 4, 3, 2)),
    {"weight_bits": 4, "weight_bits.format": "nf4"},
    {"weight_bits": 8, "weight_bits.format": "float8"},
    {"weight_bits": 2, "weight_bits.group": 32},
]


@pytest.mark.parametrize("config", LOW_BITS, ids=str)
def test_adapters_train_on_packed_weights(config: dict[str, object]) -> None:
    model = _adapted("llama", {**config, "lora.rank": 4})
    layers = [m for m in model.modules() if isinstance(m, PackedLinear)]
    assert {m.grid.bits for m in layers} == {config["weight_bits"]}
    assert {m.grid.format for m in layers} == {config.get("weight_bits.format", "integer")}
    assert {m.grid.group for m in layers} == {config.get("weight_bits.group", 64)}
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    optimizer = torch.optim.AdamW(trained.values(), lr=0.01)
    losses = []
    for _ in range(4):
        loss = tiny.loss(model, "llama")
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.05
    assert all(math.isfinite(loss) for loss in losses)


DEPLOYED = [
    {"weight_bits": 3, "lora.rank": 4},
    {"weight_bits": 4, "weight_bits.format": "nf4", "lora.rank": 4},
    {"weight_bits": 8, "weight_bits.format": "float8", "lora.rank": 4},
    {"deploy.bits": 2, "weight_bits.group": 32},
    {"deploy.bits": 5, "lora.rank": 4},
    {"qat.bits": 3},
]


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
@pytest.mark.parametrize("config", DEPLOYED, ids=str)
def test_deployed_models_load_with_plain_transformers(
    config: dict[str, object], family: str, tmp_path
) -> None:
    model = _adapted(family, config)
    tiny.loss(model, family).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad
                parameter.grad = None
    model = run_stage(COMPRESS, model, KNOBS, config).eval()
    assert any(isinstance(m, PackedLinear) for m in model.modules())
    with torch.no_grad():
        evaluated = tiny.output(model, family)
    model = run_stage(DEPLOY, model, KNOBS, config)
    assert {type(m) for m in model.modules()} == {type(m) for m in tiny.build(family).modules()}
    model.save_pretrained(tmp_path)
    restored = type(model).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        deployed = tiny.output(model, family)
        assert torch.equal(tiny.output(restored, family), deployed)
    torch.testing.assert_close(deployed, evaluated, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_bits_after_training_are_real_bytes(bits: int) -> None:
    config = {"deploy.bits": bits, "lora.rank": 4}
    model = _adapted("llama", config)
    dense = sum(
        p.numel() for n, p in model.named_parameters() if ".layers." in n and "base_layer" in n
    )
    run_stage(COMPRESS, model, KNOBS, config)
    packed = [m for m in model.modules() if isinstance(m, PackedLinear)]
    assert len(packed) == 7 * tiny.LAYERS
    width = tiny.HIDDEN  # the group of most rows; those of the FFN's width take 64
    assert storage_bytes(b for m in packed for b in m.buffers()) <= dense * (bits + 32 / width) / 8
    assert not any("lora_" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize("wide", ["deploy.bits", "qat.bits"])
def test_activation_bits_are_evaluated_close_and_deployed_dense(wide: str) -> None:
    plain = run_stage(COMPRESS, _adapted("gpt2", {wide: 8}), KNOBS, {wide: 8}).eval()
    config = {wide: 8, "deploy.activation_bits": 8}
    model = run_stage(COMPRESS, _adapted("gpt2", config), KNOBS, config).eval()
    assert sum(isinstance(m, IntegerLinear) for m in model.modules()) == 4 * tiny.LAYERS
    with torch.no_grad():
        expected, rounded = tiny.output(plain, "gpt2"), tiny.output(model, "gpt2")
        assert not torch.equal(rounded, expected)
        assert float((rounded - expected).norm()) < 0.05 * float(expected.norm())
        torch.testing.assert_close(
            tiny.output(run_stage(DEPLOY, model, KNOBS, config), "gpt2"), expected
        )


TINY = tiny.facts("llama")
LSTM = {"model": ModelFacts(family="lstm")}
REASONS = [
    (WEIGHT_FORMAT, "nf4", {"weight_bits": 8}, {}, "set weight_bits to 4"),
    (WEIGHT_FORMAT, "float8", {}, {}, "weight_bits is 16: set weight_bits to 8"),
    (WEIGHT_FORMAT, "float8", {"weight_bits": 8}, {}, None),
    (WEIGHT_GROUP, 32, {}, {}, "there is nothing to group"),
    (WEIGHT_GROUP, 32, {"weight_bits": 4}, {"model": TINY}, None),
    (WEIGHT_GROUP, 32, {"deploy.bits": 4}, {}, None),
    (WEIGHT_GROUP, 32, {"qat.bits": 4}, {}, None),
    (WEIGHT_GROUP, 128, {"weight_bits": 4}, {"model": TINY}, "does not divide the 32 inputs"),
    (WEIGHT_GROUP, 32, {"weight_bits": 8, "weight_bits.format": "float8"}, {}, "no groups"),
    (WEIGHT_GROUP, 32, {"weight_bits": 4, "prune.ffn": 0.25}, {"model": TINY}, "the 48 inputs"),
    (WEIGHT_GROUP, 32, {"weight_bits": 4, "prune.heads": 0.5}, {"model": TINY}, "the 16 inputs"),
    (WEIGHT_BITS, 4, {}, LSTM, "the family 'lstm' have no blocks"),
    (WEIGHT_BITS, 4, {}, {"model": TINY}, None),
    (QAT_BITS, 4, {}, LSTM, "set qat.bits to 16"),
    (DEPLOY_BITS, 4, {}, LSTM, "set deploy.bits to 16"),
    (QAT_BITS, 4, {"weight_bits": 4}, {}, "frozen in few bits already"),
    (QAT_BITS, 4, {"lora.rank": 4}, {}, "set lora.rank to 0"),
    (QAT_BITS, 4, {}, {}, None),
    (DEPLOY_BITS, 4, {"weight_bits": 8}, {}, "weight_bits already deploys the blocks in 8 bits"),
    (DEPLOY_BITS, 4, {"qat.bits": 8}, {}, "qat.bits already deploys the blocks in 8 bits"),
    (DEPLOY_BITS, 4, {"lora.rank": 8}, {}, None),
    (DEPLOY_ACTIVATION_BITS, 8, {"deploy.bits": 4}, {}, "set deploy.bits or qat.bits to 8"),
    (DEPLOY_ACTIVATION_BITS, 8, {"weight_bits": 8}, {}, "set deploy.bits or qat.bits to 8"),
    (DEPLOY_ACTIVATION_BITS, 8, {"qat.bits": 8}, {}, None),
    (CACHE_BITS, 4, {}, {"features": frozenset({"stream"})}, "use space inference"),
    (CACHE_BITS, 4, {}, {"purpose": "inference"}, "use space inference"),
    (CACHE_BITS, 4, {}, {"purpose": "inference", "features": frozenset({"stream"})}, None),
]


@pytest.mark.parametrize(("knob", "value", "config", "around", "sentence"), REASONS)
def test_what_cannot_work_is_said(
    knob: Knob, value: object, config: dict, around: dict, sentence: str | None
) -> None:
    said = knob.blocked(value, Context(config={**config, knob.name: value}, **around))
    assert said is None if sentence is None else sentence in said
    assert knob.blocked(knob.neutral, Context(config=config, **around)) is None


def test_cache_bits_are_part_of_the_evaluation() -> None:
    plan = EvalPlan(stream=True)
    assert run_stage(EVALUATE, plan, KNOBS, {"cache_bits": 4}) == replace(plan, cache_bits=4)
