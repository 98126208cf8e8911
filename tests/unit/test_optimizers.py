"""Optimizers: as torch's where torch has them, small states, bf16 weights that move."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from autotune.core.errors import BadValue
from autotune.knobs.optimizers import (
    FAMILIES,
    Adafactor,
    Elementwise,
    build_optimizer,
    learning_rate,
)
from autotune.knobs.rounding import load, new_states, round_stochastically, store
from autotune.knobs.stages import OptimPlan

CHANCE = torch.Generator().manual_seed(0)


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


def _state_bytes(optimizer: torch.optim.Optimizer) -> int:
    tensors = [t for s in optimizer.state.values() for t in s.values() if torch.is_tensor(t)]
    return sum(t.numel() * t.element_size() for t in tensors if t.numel() > 1)


def _groups(weights: list[nn.Parameter], decay: float) -> list[dict[str, object]]:
    return [{"params": weights, "weight_decay": decay}]


@pytest.mark.parametrize("family", ["adamw", "sgd", "adafactor"])
def test_own_rules_are_those_of_torch(family: str) -> None:
    ours, theirs = _weights(), _weights()
    if family == "adafactor":
        mine = Adafactor(_groups(ours, 0.0), lr=1e-2)
        other = torch.optim.Adafactor(theirs, lr=1e-2, weight_decay=0.0)
    else:
        mine = Elementwise(_groups(ours, 0.01), lr=1e-2, family=family, state_bits=32)
        other = {
            "adamw": lambda: torch.optim.AdamW(theirs, lr=1e-2, weight_decay=0.01),
            "sgd": lambda: torch.optim.SGD(theirs, lr=1e-2),
        }[family]()
    _run(mine, ours)
    _run(other, theirs)
    for got, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_lion_moves_by_signs() -> None:
    weight = nn.Parameter(torch.zeros(4))
    optimizer = Elementwise(_groups([weight], 0.0), lr=0.5, family="lion", state_bits=32)
    weight.grad = torch.tensor([3.0, -0.1, 0.0, 1e-6])
    optimizer.step()
    assert weight.tolist() == [-0.5, 0.5, 0.0, -0.5]
    assert torch.allclose(optimizer.state[weight]["mean"], 0.01 * weight.grad)


def test_torch_does_what_it_can() -> None:
    assert type(build_optimizer(_weights(), OptimPlan())) is torch.optim.AdamW
    assert type(build_optimizer(_weights(), OptimPlan(name="sgd"))) is torch.optim.SGD


@pytest.mark.parametrize("family", ["adamw", "lion"])
def test_eight_bit_states_are_small_and_close(family: str) -> None:
    wide, short = _weights(shape=(512, 256)), _weights(shape=(512, 256))
    plans = [OptimPlan(name=family, state_bits=bits) for bits in (32, 8)]
    full, small = (
        build_optimizer(weights, plan, 1e-3)
        for weights, plan in zip((wide, short), plans, strict=True)
    )
    start = [weight.detach().clone() for weight in wide]
    _run(full, wide, 20)
    _run(small, short, 20)
    assert 0.25 < _state_bytes(small) / _state_bytes(full) < 0.27
    for before, a, b in zip(start, wide, short, strict=True):
        moved, apart = (a - before).norm(), (a - b).norm()
        assert apart < (0.1 if family == "adamw" else 0.35) * moved


def test_eight_bit_adamw_trains_as_well_as_32() -> None:
    losses = {}
    for bits in (32, 8):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 1))
        x = torch.randn(256, 16)
        y = x[:, :1] * x[:, 1:2]
        optimizer = build_optimizer(model.parameters(), OptimPlan(state_bits=bits), 1e-2)
        for _ in range(200):
            optimizer.zero_grad()
            loss = (model(x) - y).square().mean()
            loss.backward()
            optimizer.step()
        losses[bits] = float(loss.detach())
    assert losses[32] < 0.1
    assert losses[8] < 1.3 * losses[32] + 0.01


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


def test_stochastic_rounding_has_the_right_mean() -> None:
    value = torch.full((100_000,), 1.001)
    target = torch.empty(100_000, dtype=torch.bfloat16)
    round_stochastically(target, value.clone(), torch.rand(100_000, generator=CHANCE))
    assert set(target.tolist()) == {1.0, 1.0078125}
    assert float(target.float().mean()) == pytest.approx(1.001, abs=1e-4)


@pytest.mark.parametrize("name", ["mean", "square"])
def test_eight_bit_codes_have_the_right_mean(name: str) -> None:
    values = torch.linspace(0.0, 1.0, 512) ** 2
    if name == "mean":
        values *= torch.where(torch.arange(512) % 2 == 0, 1.0, -1.0)
    total = torch.zeros(512)
    state = new_states(name, values, 8)
    for _ in range(400):
        store(state, name, slice(0, 512), values, torch.rand(512, generator=CHANCE))
        total += load(state, name, slice(0, 512))
    torch.testing.assert_close(total / 400, values, atol=2e-3, rtol=0.05)


def test_vectors_do_not_decay_and_frozen_weights_are_left_out() -> None:
    weights = _weights()
    weights[0].requires_grad_(False)
    optimizer = build_optimizer(weights, OptimPlan())
    decays = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert decays == {id(weights[1]): 0.0, id(weights[2]): 0.01}


def test_parameters_that_are_not_contiguous_are_updated() -> None:
    weight = nn.Parameter(torch.ones(6, 4, dtype=torch.bfloat16).t())
    optimizer = build_optimizer([weight], OptimPlan(name="lion"), 1.0)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert bool((weight < 0.9).all())


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


def test_closures_work() -> None:
    weight = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimizer = build_optimizer([weight], OptimPlan(name="sgd"))

    def closure() -> float:
        loss = weight.float().sum()
        loss.backward()
        return float(loss.detach())

    assert optimizer.step(closure) == 4.0
    assert weight.grad is not None
