"""Muon, GaLore and APOLLO: what a matrix moves along, what is kept for it, and which matrices."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from autotune.core.errors import ModelError
from autotune.knobs.low_rank import MOST_RANK, REFRESH, leading_directions, rank_of
from autotune.knobs.muon import orthogonalise
from autotune.knobs.optimizers import build_optimizer
from autotune.knobs.stages import OptimPlan
from tests import tiny_models as tiny

SHAPES = [(24, 40), (40, 24)]
HIDDEN = ("muon", "galore", "apollo")


def _matrix(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _spread(rows: int, columns: int) -> torch.Tensor:
    """A matrix with singular values 1, 1/2, 1/4, …"""
    u = torch.linalg.qr(_matrix((rows, rows))).Q
    v = torch.linalg.qr(_matrix((columns, rows), 1)).Q
    return u @ torch.diag(0.5 ** torch.arange(rows)) @ v.t()


def _changes(plan: OptimPlan, gradients: list[torch.Tensor]) -> tuple[list[torch.Tensor], dict]:
    """What a matrix that starts at zero moves by in each step, per unit of rate; and its state."""
    weight = nn.Parameter(torch.zeros_like(gradients[0]))
    optimizer = build_optimizer([weight], plan, 1.0)
    changes = []
    for gradient in gradients:
        optimizer.param_groups[0]["weight_decay"] = 0.0
        before, weight.grad = weight.detach().clone(), gradient.clone()
        optimizer.step()
        changes.append(weight.detach() - before)
    return changes, optimizer.state[weight]


def _bytes(state: dict) -> int:
    return sum(t.numel() * t.element_size() for t in state.values() if torch.is_tensor(t))


@pytest.mark.parametrize("shape", SHAPES)
def test_orthogonalised_matrices_have_singular_values_near_one(shape: tuple[int, int]) -> None:
    matrix = 7.0 * _matrix(shape)
    result = orthogonalise(matrix)
    values = torch.linalg.svdvals(result)
    assert result.shape == shape
    assert 0.6 < float(values.min()) <= float(values.max()) < 1.3
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    assert float((result - u @ v).norm() / (u @ v).norm()) < 0.3


@pytest.mark.parametrize("shape", SHAPES)
def test_muon_is_that_of_torch_at_the_scale_of_adamw(shape: tuple[int, int]) -> None:
    gradients = [_matrix(shape, seed) for seed in range(4)]
    weight = nn.Parameter(torch.zeros(shape))
    theirs = torch.optim.Muon([weight], lr=1.0, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    changes, _ = _changes(OptimPlan(name="muon"), gradients)
    for change, gradient in zip(changes, gradients, strict=True):
        before, weight.grad = weight.detach().clone(), gradient.clone()
        theirs.step()
        expected = weight.detach() - before
        assert float((change - expected).norm() / expected.norm()) < 0.03  # theirs is in bf16
        assert float(change.square().mean().sqrt()) == pytest.approx(0.2, rel=0.25)


def test_leading_directions_are_those_of_the_full_decomposition() -> None:
    matrix, rank = _spread(20, 30), 5
    basis = leading_directions(matrix, rank)
    exact = torch.linalg.svd(matrix).U[:, :rank]
    torch.testing.assert_close(basis.t() @ basis, torch.eye(rank), atol=1e-5, rtol=0)
    torch.testing.assert_close(basis @ basis.t(), exact @ exact.t(), atol=1e-3, rtol=0)
    torch.testing.assert_close((basis * exact).sum(0).abs(), torch.ones(rank), atol=1e-3, rtol=0)


@pytest.mark.parametrize("family", HIDDEN)
def test_gradients_that_are_not_finite_show_in_the_weights(family: str) -> None:
    (change,), _ = _changes(OptimPlan(name=family), [torch.full((24, 40), torch.nan)])
    assert not bool(torch.isfinite(change).any())


def test_default_ranks() -> None:
    assert rank_of(torch.Size((768, 3072))) == MOST_RANK
    assert rank_of(torch.Size((64, 256))) == 16
    assert rank_of(torch.Size((3, 256))) == 1
    assert rank_of(torch.Size((64, 256)), 32) == 32


@pytest.mark.parametrize("shape", SHAPES)
def test_galore_moves_within_few_directions_and_keeps_only_those(shape: tuple[int, int]) -> None:
    rank, (short, long) = 4, sorted(shape)
    changes, state = _changes(OptimPlan(name="galore", rank=rank), [_matrix(shape)] * 3)
    for change in changes:
        assert int(torch.linalg.matrix_rank(change, rtol=1e-4)) == rank
    assert _bytes(state) == 4 * (2 * rank * long + short * rank)
    _, packed = _changes(OptimPlan(name="galore", rank=rank, state_bits=16), [_matrix(shape)])
    assert _bytes(packed) == 2 * (2 * rank * long + short * rank)


def test_galore_looks_for_new_directions_from_time_to_time() -> None:
    weight = nn.Parameter(torch.zeros(24, 40))
    optimizer = build_optimizer([weight], OptimPlan(name="galore", rank=4), 1e-3)
    renewed = []
    last = None
    for step in range(1, 2 * REFRESH + 2):
        weight.grad = _matrix((24, 40), step)
        optimizer.step()
        basis = optimizer.state[weight]["basis"]
        if last is None or not torch.equal(basis, last):
            renewed.append(step)
        last = basis
    assert renewed == [1, 1 + REFRESH, 1 + 2 * REFRESH]


@pytest.mark.parametrize("shape", SHAPES)
def test_apollo_moves_along_the_gradient(shape: tuple[int, int]) -> None:
    rank, long = 4, max(shape)
    gradients = [_matrix(shape, seed) for seed in range(3)]
    changes, state = _changes(OptimPlan(name="apollo", rank=rank), gradients)
    for change, gradient in zip(changes, gradients, strict=True):
        factor = -change / gradient
        wide = factor if shape[0] < shape[1] else factor.t()
        torch.testing.assert_close(wide, wide[:1].expand_as(wide), atol=1e-4, rtol=1e-3)
        assert bool((wide > 0).all())
    assert _bytes(state) == 4 * (2 * rank * long + 1)


@pytest.mark.parametrize("family", ["galore", "apollo"])
@pytest.mark.parametrize("rank", [4, 16])
def test_updates_are_of_the_size_of_those_of_adamw(family: str, rank: int) -> None:
    gradients = [_matrix((64, 96), seed) for seed in range(8)]
    (*_, change), _ = _changes(OptimPlan(name=family, rank=rank), gradients)
    (*_, expected), _ = _changes(OptimPlan(), gradients)
    assert 0.4 < float(change.norm() / expected.norm()) < 2.5


def test_updates_of_apollo_do_not_jump() -> None:
    gradients = [1e-3 * _matrix((24, 40)), *[_matrix((24, 40), 1)] * 3]
    changes, _ = _changes(OptimPlan(name="apollo", rank=4), gradients)
    norms = [float(change.norm()) for change in changes]
    assert all(after <= 1.0101 * before for before, after in pairwise(norms))


def test_apollo_starts_late_where_gradients_are_zero_at_first() -> None:
    changes, _ = _changes(
        OptimPlan(name="apollo", rank=4), [torch.zeros(24, 40), _matrix((24, 40))]
    )
    assert [float(change.norm()) > 0 for change in changes] == [False, True]


@pytest.mark.parametrize("family", HIDDEN)
def test_bf16_weights_follow_those_in_fp32(family: str) -> None:
    wide = nn.Parameter(torch.ones(24, 40))
    narrow = nn.Parameter(torch.ones(24, 40, dtype=torch.bfloat16))
    for weight in (wide, narrow):
        optimizer = build_optimizer([weight], OptimPlan(name=family), 1e-3)
        for step in range(30):
            weight.grad = (1.0 + _matrix((24, 40), step)).to(weight.dtype)
            optimizer.step()
    moved = (wide - 1).detach()
    assert float(moved.abs().mean()) > 1e-3
    apart = (narrow.float() - wide).detach()
    assert float(apart.mean().abs()) < 0.05 * float(moved.abs().mean())


@pytest.mark.parametrize("family", HIDDEN)
def test_only_matrices_inside_blocks_are_treated_so(family: str) -> None:
    model = tiny.build("gpt2")
    optimizer = build_optimizer(model.parameters(), OptimPlan(name=family), 1e-3, model)
    methods = {id(p): g["method"] for g in optimizer.param_groups for p in g["params"]}
    for name, parameter in model.named_parameters():
        inside = ".h." in name and parameter.ndim == 2
        assert methods[id(parameter)] == (family if inside else "adamw"), name
    decays = {g["weight_decay"] for g in optimizer.param_groups if len(g["params"][0].shape) == 1}
    assert decays == {0.0}


@pytest.mark.parametrize("family", ["galore", "apollo"])
def test_matrices_no_wider_than_the_rank_are_left_to_adamw(family: str) -> None:
    model = tiny.build("llama")
    plan = OptimPlan(name=family, rank=tiny.HIDDEN // 2)  # as wide as keys and values
    optimizer = build_optimizer(model.parameters(), plan, 1e-3, model)
    projected = {
        id(p) for g in optimizer.param_groups if g["method"] == family for p in g["params"]
    }
    names = {name.split(".")[-2] for name, p in model.named_parameters() if id(p) in projected}
    assert names == {"q_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_a_model_without_blocks_is_refused() -> None:
    model = nn.Linear(8, 8)
    with pytest.raises(ModelError, match="muon is for the matrices inside blocks") as caught:
        build_optimizer(model.parameters(), OptimPlan(name="muon"), 1e-3, model)
    assert caught.value.help == "set optimizer to adamw"
