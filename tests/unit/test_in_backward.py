"""Updates in the backward pass and on the host: as those of a plain optimizer."""

from __future__ import annotations

import gc
import io

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from autotune.core.knob import run_stage
from autotune.knobs.checkpointing import CHECKPOINTING
from autotune.knobs.in_backward import MOST_NORM, InBackward
from autotune.knobs.offloaded import Offloaded
from autotune.knobs.optimizers import FAMILIES, build_optimizer
from autotune.knobs.stages import ADAPT, Adaptation, OptimPlan, StepPlan
from autotune.trial.loop import MAX_GRADIENT_NORM, schedule, train_step
from tests import tiny_models as tiny

CPU = torch.device("cpu")


class _Task:
    """The loss of a tiny language model, small enough for no gradient to be clipped."""

    def __init__(self, family: str, chunks: int = 1) -> None:
        self.family, self.chunks = family, chunks

    def loss(self, model: nn.Module, batch: dict[str, Tensor], plan: StepPlan) -> Tensor:
        return 0.01 * tiny.loss(model, self.family, self.chunks)


def _train(
    plan: OptimPlan, family: str = "gpt2", *, steps: int = 3, chunks: int = 1,
    dtype: str = "float32", checkpointing: str = "none",
) -> nn.Module:  # fmt: skip
    """A model after a few steps of the loop that trials use."""
    state = Adaptation(model=tiny.build(family, dtype=dtype))
    config = {"checkpointing": checkpointing}
    model = run_stage(ADAPT, state, (CHECKPOINTING,), config).model
    optimizer = build_optimizer(model.parameters(), plan, 1e-3, model)
    rates = schedule(optimizer, 10)
    batch = tiny.inputs(family)
    for _ in range(steps):
        task = _Task(family, chunks)
        train_step(task, model, optimizer, batch, StepPlan(), device=CPU)  # type: ignore[arg-type]  # only the loss of an objective is asked for
        rates.step()
        assert all(p.grad is None for p in model.parameters())
    return model


def _assert_same(got: nn.Module, expected: nn.Module) -> None:
    start = tiny.build(expected.config.model_type, dtype=str(expected.dtype).split(".")[1])
    for a, b, old in zip(got.parameters(), expected.parameters(), start.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
        assert not torch.equal(b, old)


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("where", ["in_backward", "offload"])
def test_every_family_updates_as_it_does_by_itself(family: str, where: str) -> None:
    wrapped = OptimPlan(name=family, **{where: True})
    _assert_same(_train(wrapped), _train(OptimPlan(name=family)))


VARIATIONS = [
    {"plan": {"state_bits": 4}},
    {"plan": {"gradient_dtype": "bfloat16"}},
    {"plan": {}, "dtype": "bfloat16"},
    {"plan": {}, "checkpointing": "full"},
    {"plan": {}, "chunks": 4},
]


@pytest.mark.parametrize("variation", VARIATIONS, ids=str)
@pytest.mark.parametrize("where", ["in_backward", "offload"])
def test_what_else_varies_is_the_same(variation: dict, where: str) -> None:
    """Tied embeddings throughout: gpt2's take part in the first layer and in the last one."""
    options = {**variation}
    plan = options.pop("plan")
    wrapped = _train(OptimPlan(**plan, **{where: True}), **options)
    _assert_same(wrapped, _train(OptimPlan(**plan), **options))


def test_gradients_never_exist_together() -> None:
    model = tiny.build("gpt2")
    build = build_optimizer(model.parameters(), OptimPlan(in_backward=True), 1e-3)
    alive: list[int] = []
    for parameter in model.parameters():
        parameter.register_hook(
            lambda _: alive.append(sum(p.grad is not None for p in model.parameters()))
        )
    tiny.loss(model, "gpt2").backward()
    assert len(alive) == len(list(model.parameters()))
    assert max(alive) == 0
    assert len(build.state) == len(alive)


def test_each_gradient_is_clipped_by_its_own_norm() -> None:
    assert MOST_NORM == MAX_GRADIENT_NORM
    weights = [nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(4))]
    build = build_optimizer(weights, OptimPlan(name="sgd", in_backward=True), 1e-3)
    (100 * weights[0].sum() + 0.1 * weights[1].sum()).backward()
    assert weights[0].tolist() == pytest.approx([-0.5] * 4)  # rate 1, norm 1
    assert weights[1].tolist() == pytest.approx([-0.1] * 4)
    del build


@pytest.mark.parametrize("family", ["adamw", "lion"])
def test_states_groups_and_rates_are_those_of_the_inner_optimizer(family: str) -> None:
    weight = nn.Parameter(torch.ones(4, 4))
    optimizer = build_optimizer([weight], OptimPlan(name=family, in_backward=True), 1e-3)
    assert isinstance(optimizer, InBackward)
    rates = LambdaLR(optimizer, lambda step: 0.0 if step == 0 else 1.0)
    for moves in (False, True):
        before = weight.detach().clone()
        weight.square().sum().backward()
        optimizer.step()
        rates.step()
        assert torch.equal(weight, before) is not moves
    states = [t for s in optimizer.state.values() for t in s.values() if torch.is_tensor(t)]
    moments = 2 if family == "adamw" else 1
    assert sum(t.numel() for t in states if t.numel() > 1) == moments * weight.numel()


def test_a_closure_is_run_and_its_gradients_are_used() -> None:
    weight = nn.Parameter(torch.ones(4))
    optimizer = build_optimizer([weight], OptimPlan(name="sgd", in_backward=True), 1e-3)

    def closure() -> float:
        loss = 0.1 * weight.sum()
        loss.backward()
        return float(loss.detach())

    assert optimizer.step(closure) == pytest.approx(0.4)
    assert weight.tolist() == pytest.approx([0.9] * 4)


def test_nothing_is_left_of_an_optimizer_that_is_gone() -> None:
    weight = nn.Parameter(torch.ones(4))
    optimizer = build_optimizer([weight], OptimPlan(in_backward=True), 1e-3)
    rates = schedule(optimizer, 3)
    del optimizer, rates
    gc.collect()
    weight.sum().backward()
    assert weight.grad is not None
    assert weight.tolist() == [1.0] * 4
    assert not weight._post_accumulate_grad_hooks


@pytest.mark.parametrize("where", ["in_backward", "offload"])
@pytest.mark.parametrize("bits", [32, 8])
def test_a_training_goes_on_from_its_saved_state(where: str, bits: int) -> None:
    plan = OptimPlan(state_bits=bits, **{where: True})
    weights = [nn.Parameter(torch.linspace(-1, 1, 64)) for _ in range(2)]

    def step(weight: nn.Parameter, optimizer: torch.optim.Optimizer) -> None:
        weight.square().sum().mul(0.01).backward()
        optimizer.step()
        optimizer.zero_grad()

    first, second = (build_optimizer([weight], plan, 1e-2) for weight in weights)
    step(weights[0], first)
    step(weights[1], second)
    file = io.BytesIO()
    torch.save(second.state_dict(), file)
    file.seek(0)
    del second
    third = build_optimizer(weights[1:], plan, 1.0)
    third.load_state_dict(torch.load(file, weights_only=True))
    assert third.param_groups[0]["lr"] == pytest.approx(1e-2)
    assert len(third.state) == 1
    step(weights[0], first)
    step(weights[1], third)
    assert torch.equal(*weights)


def test_what_else_changes_weights_on_the_device_is_respected() -> None:
    weight = nn.Parameter(torch.ones(4))
    optimizer = build_optimizer([weight], OptimPlan(name="sgd", offload=True), 1e-3)
    assert isinstance(optimizer, Offloaded)
    for mask in ([1.0, 1.0, 1.0, 1.0], [1.0, 0.0, 1.0, 0.0]):
        weight.data.mul_(torch.tensor(mask))
        weight.grad = torch.full((4,), 0.25)
        optimizer.step()
    assert weight.tolist() == pytest.approx([0.5, -0.25, 0.5, -0.25])


def test_parameters_without_a_gradient_stay() -> None:
    weights = [nn.Parameter(torch.ones(4)) for _ in range(2)]
    optimizer = build_optimizer(weights, OptimPlan(offload=True), 1e-1)
    for step in range(2):
        weights[0].grad = torch.ones(4)
        weights[1].grad = torch.ones(4) if step == 0 else None
        optimizer.step()
    assert float(weights[0][0].detach()) < float(weights[1][0].detach()) < 1.0
    assert len(optimizer.state) == 2
