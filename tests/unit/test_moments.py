"""Moments in few bits: their exact bytes, no bias, and updates close to those of fp32 states."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import nn

from autotune.knobs.moments import BLOCKS, load, new_moment, store
from autotune.knobs.optimizers import build_optimizer
from autotune.knobs.rounding import PIECE
from autotune.knobs.stages import OptimPlan

CHANCE = torch.Generator().manual_seed(0)
CPU = torch.device("cpu")
BYTES = {
    32: Fraction(4),
    16: Fraction(2),
    8: 1 + Fraction(4, 256),
    4: Fraction(1, 2) + Fraction(4, 128),
}


def _bytes(tensors: dict[str, torch.Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors.values() if torch.is_tensor(t))


def _twins(count: int = 2**15) -> list[nn.Parameter]:
    start = torch.randn(count // 128, 128, generator=torch.Generator().manual_seed(0))
    return [nn.Parameter(start.clone()), nn.Parameter(start.clone())]


@pytest.mark.parametrize(("bits", "share"), BYTES.items())
def test_bytes_are_exact(bits: int, share: Fraction) -> None:
    count = 2**14
    for name in ("mean", "square"):
        assert _bytes(new_moment(name, count, CPU, bits)) == share * count
    weight = nn.Parameter(torch.zeros(count))
    plan = OptimPlan(state_bits=bits)
    optimizer = build_optimizer([weight], plan)
    weight.grad = torch.ones(count)
    optimizer.step()
    states = {name: t for name, t in optimizer.state[weight].items() if name != "step"}
    assert _bytes(states) == 2 * share * count


@pytest.mark.parametrize("bits", [32, 16, 8, 4])
@pytest.mark.parametrize("count", [1, 127, 300, 2**12])
def test_new_moments_are_zero_and_zeros_stay(bits: int, count: int) -> None:
    for name in ("mean", "square"):
        state, whole = new_moment(name, count, CPU, bits), slice(0, count)
        assert load(state, name, whole, bits).tolist() == [0.0] * count
        noise = torch.rand(4096, generator=CHANCE)
        store(state, name, whole, bits, torch.zeros(count), noise)
        assert load(state, name, whole, bits).tolist() == [0.0] * count


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("name", ["mean", "square"])
def test_codes_have_the_right_mean(name: str, bits: int) -> None:
    lowest = 0.0 if bits == 16 else 1.0 / BLOCKS[bits].highest(name)
    values = torch.linspace(lowest, 1.0, 512) ** 2
    if name == "mean":
        values *= torch.where(torch.arange(512) % 2 == 0, 1.0, -1.0)
    total, rounds = torch.zeros(512), 600
    state = new_moment(name, 512, CPU, bits)
    for _ in range(rounds):
        noise = torch.rand(512, generator=CHANCE)
        store(state, name, slice(0, 512), bits, values.clone(), noise)
        total += load(state, name, slice(0, 512), bits)
    step = 2**-8 if bits == 16 else 2 / BLOCKS[bits].highest(name)  # the widest gap between codes
    torch.testing.assert_close(total / rounds, values, atol=4 * step / (2 * rounds**0.5), rtol=0)


@pytest.mark.parametrize("bits", [8, 4])
def test_second_moments_are_never_zero_beside_greater_ones(bits: int) -> None:
    values = torch.zeros(256)
    values[::2] = 1.0
    state = new_moment("square", 256, CPU, bits)
    store(state, "square", slice(0, 256), bits, values, torch.rand(256, generator=CHANCE))
    loaded = load(state, "square", slice(0, 256), bits)
    assert float(loaded.min()) == pytest.approx((0.5 / BLOCKS[bits].top) ** 2)


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_averages_decay(bits: int) -> None:
    """A share of a thousandth is below half a step of every short format."""
    state = new_moment("square", 4096, CPU, bits)
    values = torch.linspace(0.5, 1.0, 4096)
    for _ in range(300):
        noise = torch.rand(4096, generator=CHANCE)
        store(state, "square", slice(0, 4096), bits, values, noise)
        values = load(state, "square", slice(0, 4096), bits).clone().mul_(0.999)
    assert float(values.mean()) == pytest.approx(0.75 * 0.999**300, rel=0.05)


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("family", ["adamw", "lion"])
def test_updates_are_close_to_those_of_fp32_states(family: str, bits: int) -> None:
    wide, short = _twins()
    optimizers = [
        build_optimizer([weight], OptimPlan(name=family, state_bits=width), 1e-3)
        for weight, width in ((wide, 32), (short, bits))
    ]
    start = wide.detach().clone()
    lean = torch.linspace(0.1, 1.0, 128)  # values that share a scale are not of one size
    for _ in range(20):
        gradient = (0.5 + torch.randn(wide.shape, generator=CHANCE)) * lean
        for weight, optimizer in zip((wide, short), optimizers, strict=True):
            weight.grad = gradient.clone()
            optimizer.step()
    apart = (wide - short).detach().norm() / (wide - start).detach().norm()
    allowed = {"adamw": {16: 0.01, 8: 0.05, 4: 0.35}, "lion": {16: 0.1, 8: 0.2, 4: 0.8}}
    assert float(apart) < allowed[family][bits]


def test_pieces_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for piece in (2**10, 2**18):
        monkeypatch.setitem(PIECE, "cpu", piece)
        weight, _ = _twins()
        optimizer = build_optimizer([weight], OptimPlan(name="lion"), 1e-3)
        weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(3))
        optimizer.step()
        results.append(weight)
    assert torch.equal(*results)
