"""Optimizers: as torch's where torch has them, 16-bit weights that move, gradients in bf16."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

from autotune.core.errors import BadValue
from autotune.knobs.optimizers import (
    FAMILIES,
    KERNELS,
    METHODS,
    TORCH_KINDS,
    build_optimizer,
    learning_rate,
)
from autotune.knobs.rounded import Rounded
from autotune.knobs.rounding import round_stochastically
from autotune.knobs.stages import OptimPlan
from tests import tiny_models as tiny

CHANCE = torch.Generator().manual_seed(0)
WITH_STATES = [name for name, family in FAMILIES.items() if family.moments]


def _weights(dtype: torch.dtype = torch.float32, shape: tuple[int, ...] = (40, 30)):
    chance = torch.Generator().manual_seed(0)
    shapes = (shape, (30,), (3, 5, 7))
    return [nn.Parameter(torch.randn(s, generator=chance).to(dtype)) for s in shapes]


def _run(optimizer: torch.optim.Optimizer, weights: list[nn.Parameter], steps: int = 5) -> None:
    chance = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=chance).to(weight.dtype)
        optimizer.step()


def _groups(weights: list[nn.Parameter], decay: float, method: str) -> list[dict[str, object]]:
    return [{"params": weights, "weight_decay": decay, "method": method, "bits": 32}]


@pytest.mark.parametrize("family", ["adamw", "sgd", "adafactor"])
def test_own_rules_are_those_of_torch(family: str) -> None:
    ours, theirs = _weights(), _weights()
    decay = 0.01 if family == "adamw" else 0.0
    mine = Rounded(_groups(ours, decay, family), lr=1e-2, methods=METHODS)
    kinds = {**TORCH_KINDS, "adafactor": torch.optim.Adafactor}
    other = kinds[family](theirs, lr=1e-2, weight_decay=decay)
    _run(mine, ours)
    _run(other, theirs)
    for got, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_lion_moves_by_signs() -> None:
    weight = nn.Parameter(torch.zeros(4))
    optimizer = Rounded(_groups([weight], 0.0, "lion"), lr=0.5, methods=METHODS)
    weight.grad = torch.tensor([3.0, -0.1, 0.0, 1e-6])
    optimizer.step()
    assert weight.tolist() == [-0.5, 0.5, 0.0, -0.5]
    assert torch.allclose(optimizer.state[weight]["mean"], 0.01 * weight.grad)


@pytest.mark.parametrize("name", list(TORCH_KINDS))
def test_torch_does_what_it_can_and_its_kernels_agree(name: str) -> None:
    results = {}
    for kernel, options in KERNELS.items():
        weights = _weights()
        optimizer = build_optimizer(weights, OptimPlan(name=name, kernel=kernel), 1e-3)
        assert type(optimizer) is TORCH_KINDS[name]
        assert {key: optimizer.defaults[key] for key in options} == options
        _run(optimizer, weights)
        results[kernel] = weights
    for weights in results.values():
        for got, expected in zip(weights, results["fused"], strict=True):
            torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_default_rates_train_a_language_model(family: str) -> None:
    model = tiny.build("llama")
    optimizer = build_optimizer(model.parameters(), OptimPlan(name=family), 3e-3, model)
    losses = []
    for _ in range(30):
        loss = tiny.loss(model, "llama")
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    assert max(losses) < 1.2 * losses[0]


def test_adamw_with_short_states_trains_as_well_as_with_32_bits() -> None:
    losses = {}
    for width in (32, 16, 8, 4):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 1))
        x = torch.randn(256, 16)
        y = x[:, :1] * x[:, 1:2]
        optimizer = build_optimizer(model.parameters(), OptimPlan(state_bits=width), 1e-2)
        for _ in range(150):
            optimizer.zero_grad()
            loss = (model(x) - y).square().mean()
            loss.backward()
            optimizer.step()
        losses[width] = float(loss.detach())
    assert losses[32] < 0.1
    assert max(losses[16], losses[8]) < 1.3 * losses[32] + 0.01
    assert losses[4] < 1.3 * losses[32] + 0.03


@pytest.mark.parametrize("bits", [32, 4])
@pytest.mark.parametrize("family", WITH_STATES)
def test_a_training_goes_on_from_its_saved_state(family: str, bits: int) -> None:
    plan = OptimPlan(name=family, state_bits=bits)
    whole, halved = _weights(torch.bfloat16), _weights(torch.bfloat16)
    first, second = (build_optimizer(weights, plan, 1e-2) for weights in (whole, halved))
    _run(first, whole, 3)
    _run(second, halved, 3)
    file = io.BytesIO()
    torch.save(second.state_dict(), file)
    file.seek(0)
    third = build_optimizer(halved, plan, 1e-2)
    third.load_state_dict(torch.load(file, weights_only=True))
    _run(first, whole, 2)
    _run(third, halved, 2)
    assert all(torch.equal(a, b) for a, b in zip(whole, halved, strict=True))


@pytest.mark.parametrize("family", list(FAMILIES))
def test_bf16_weights_near_one_move(family: str) -> None:
    """Rounding to nearest would lose every one of these steps: half a unit at 1 is 0.002."""
    weight = nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
    rate = 1e-4 / FAMILIES[family].rate
    optimizer = build_optimizer([weight], OptimPlan(name=family), rate)
    for _ in range(10):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    moved = 1.0 - float(weight.detach().float().mean())
    assert moved == pytest.approx(1e-3, rel=0.3)
    nearest = torch.ones(1, dtype=torch.bfloat16) - 1e-4
    assert float(nearest) == 1.0


@pytest.mark.parametrize(
    ("dtype", "neighbours"),
    [(torch.bfloat16, {1.0, 1.0078125}), (torch.float16, {1.0, 1.0009765625})],
)
def test_stochastic_rounding_has_the_right_mean(dtype: torch.dtype, neighbours: set[float]) -> None:
    value = torch.full((100_000,), 1.0004)
    target = torch.empty(100_000, dtype=dtype)
    round_stochastically(target, value.clone(), torch.rand(100_000, generator=CHANCE))
    assert set(target.tolist()) == neighbours
    assert float(target.float().mean()) == pytest.approx(1.0004, abs=5e-5)


def test_vectors_do_not_decay_and_frozen_weights_are_left_out() -> None:
    weights = _weights()
    weights[0].requires_grad_(False)
    optimizer = build_optimizer(weights, OptimPlan())
    decays = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert decays == {id(weights[1]): 0.0, id(weights[2]): 0.01}


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "sgd"])
def test_parameters_that_are_not_contiguous_are_updated(family: str) -> None:
    strided = nn.Parameter(torch.ones(6, 4, dtype=torch.bfloat16).t())
    plain = nn.Parameter(torch.ones(4, 6, dtype=torch.bfloat16))
    gradient = torch.randn(4, 6, generator=CHANCE).bfloat16()
    for weight in (strided, plain):
        optimizer = build_optimizer([weight], OptimPlan(name=family), 0.5)
        weight.grad = gradient.clone()
        optimizer.step()
    assert not torch.equal(plain, torch.ones_like(plain))
    torch.testing.assert_close(strided, plain)


def test_schedules_change_the_rate() -> None:
    weight = nn.Parameter(torch.zeros(4))
    optimizer = build_optimizer([weight], OptimPlan(name="lion"), 1.0)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    weight.grad = torch.ones(4)
    optimizer.step()
    assert weight.tolist() == pytest.approx([-0.25] * 4)


def test_rates() -> None:
    assert learning_rate(OptimPlan()) == pytest.approx(5e-5)
    assert learning_rate(OptimPlan(name="lion", rate_scale=3.0), 1e-3) == pytest.approx(1.5e-3)
    assert learning_rate(OptimPlan(adapters=True)) == pytest.approx(5e-4)
    assert learning_rate(OptimPlan(name="sgd", adapters=True)) == pytest.approx(0.15)


def test_what_cannot_be_built_is_an_error() -> None:
    with pytest.raises(BadValue, match="'adam' is no optimizer"):
        build_optimizer(_weights(), OptimPlan(name="adam"))
    with pytest.raises(BadValue, match="sgd keeps no states"):
        build_optimizer(_weights(), OptimPlan(name="sgd", state_bits=8))
    with pytest.raises(BadValue, match="cannot happen in the backward pass"):
        build_optimizer(_weights(), OptimPlan(in_backward=True, offload=True))
    with pytest.raises(BadValue, match=r"no loop kernel for adamw in 32 bits on torch\.bfloat16"):
        build_optimizer(_weights(torch.bfloat16), OptimPlan(kernel="loop"))


def test_closures_work() -> None:
    weight = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimizer = build_optimizer([weight], OptimPlan(name="sgd"))

    def closure() -> float:
        loss = weight.float().sum()
        loss.backward()
        return float(loss.detach())

    assert optimizer.step(closure) == 4.0
    assert weight.grad is not None


@pytest.mark.parametrize("family", ["gpt2", "llama"])  # the first one's embeddings are tied
def test_gradients_in_bf16_are_close_also_when_they_add_up(family: str) -> None:
    plain, short = tiny.build(family), tiny.build(family)
    plan = OptimPlan(gradient_dtype="bfloat16")
    optimizer = build_optimizer(short.parameters(), plan, 1e-3)
    before = [p.detach().clone() for p in short.parameters()]
    for model in (plain, short):
        for _ in range(2):
            (tiny.loss(model, family) / 2).backward()
    for wide, narrow in zip(plain.parameters(), short.parameters(), strict=True):
        assert narrow.grad.dtype is torch.bfloat16
        apart = (narrow.grad.float() - wide.grad).norm()
        assert apart <= 2**-7 * wide.grad.norm() + 1e-9
    nn.utils.clip_grad_norm_(short.parameters(), 1.0)
    optimizer.step()
    assert all(p.dtype is torch.float32 for p in short.parameters())
    assert all(not torch.equal(a, b) for a, b in zip(before, short.parameters(), strict=True))
