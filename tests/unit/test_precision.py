"""Precisions: which dtypes they mean, what they cost, and gradients that do not vanish."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from autotune.core.context import Context, Device, ModelFacts
from autotune.core.domains import Value
from autotune.core.errors import ModelError
from autotune.core.knob import run_stage
from autotune.knobs import scaling
from autotune.knobs.accumulation import ACCUMULATION
from autotune.knobs.attention import ATTENTION
from autotune.knobs.checkpointing import CHECKPOINTING
from autotune.knobs.float8 import FLOAT8
from autotune.knobs.lora import LORA_RANK
from autotune.knobs.optimizers import build_optimizer
from autotune.knobs.precision import PRECISION
from autotune.knobs.scaling import LossScaler
from autotune.knobs.stages import (
    ADAPT,
    DEPLOY,
    EVALUATE,
    LOAD,
    PARALLELISE,
    STEP,
    Adaptation,
    EvalPlan,
    LoadPlan,
    OptimPlan,
    StepPlan,
)
from autotune.trial.anatomy import LiveStorages
from autotune.trial.loop import Helpers, contexts, train_step
from tests import tiny_models as tiny

KNOBS = (PRECISION, ATTENTION, LORA_RANK, CHECKPOINTING, ACCUMULATION)
CPU = torch.device("cpu")
NARROW = ("bf16", "fp16", "bf16_mixed", "fp16_mixed")
WEIGHTS = {"bf16": torch.bfloat16, "fp16": torch.float16}
PRODUCTS = WEIGHTS | {"bf16_mixed": torch.bfloat16, "fp16_mixed": torch.float16}


class _Task:
    """Next tokens of one fixed batch; notes the dtype of logits."""

    def __init__(self, family: str, plan: EvalPlan | None = None) -> None:
        self.batch = tiny.inputs(family, batch=4, tokens=16)
        self.logits: torch.dtype | None = None

    def loss(self, model: nn.Module, batch: dict[str, torch.Tensor], plan: StepPlan):
        logits = model(**batch).logits
        self.logits = logits.dtype
        if logits.ndim == 2:
            return nn.functional.cross_entropy(logits.float(), batch["input_ids"][:, 0] % 3)
        wanted = batch["input_ids"][:, 1:].flatten()
        return nn.functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), wanted)


def _model(family: str, config: dict[str, Value]) -> nn.Module:
    load = run_stage(LOAD, LoadPlan(), KNOBS, config)
    model = tiny.build(family, dtype=load.dtype)
    model = run_stage(ADAPT, Adaptation(model=model), KNOBS, config).model
    return run_stage(PARALLELISE, model, KNOBS, config)


def _train(family: str, config: dict[str, Value], steps: int = 4) -> tuple[nn.Module, list[float]]:
    model, task = _model(family, config), _Task(family)
    plan = run_stage(STEP, StepPlan(), KNOBS, config)
    optim = OptimPlan(adapters="lora.rank" in config)
    optimizer = build_optimizer(model.parameters(), optim, base_rate=3e-4)
    helpers = Helpers(scaler=LossScaler() if plan.loss_scaling else None)
    losses = [
        train_step(task, model, optimizer, task.batch, plan, device=CPU, helpers=helpers)
        for _ in range(steps)
    ]
    precision = str(config.get("precision", "fp32"))
    assert task.logits is PRODUCTS.get(precision, torch.float32)
    return model, losses


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
@pytest.mark.parametrize(
    "around",
    [{}, {"lora.rank": 4}, {"accumulation": 2}, {"checkpointing": "full"}],
    ids=str,
)
@pytest.mark.parametrize("precision", NARROW)
def test_trains_close_to_fp32(family: str, around: dict[str, Value], precision: str) -> None:
    _, plain = _train(family, around)
    model, losses = _train(family, around | {"precision": precision})
    assert losses == pytest.approx(plain, rel=0.02)
    assert losses[-1] < losses[0]
    held = WEIGHTS.get(precision, torch.float32)
    assert {p.dtype for p in model.parameters()} == {held}


def test_scaled_losses_train_what_would_have_vanished() -> None:
    """Gradients of 1e-9 on the way to a weight are zero in fp16, unless the loss is scaled."""
    x = torch.full((64, 1), 64.0, dtype=torch.float16)
    gradients = []
    for scaler in (None, LossScaler()):
        weight = nn.Parameter(torch.ones(1, 1, dtype=torch.float16))
        loss = ((x @ weight).float() * 1e-8).sum()
        (loss if scaler is None else scaler.scale(loss)).backward()
        if scaler is not None:
            assert scaler.unscale([weight])
        gradients.append(float(weight.grad))
    assert gradients[0] == 0.0
    assert gradients[1] == pytest.approx(64 * 64 * 1e-8, rel=2e-2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_an_overflow_leaves_out_the_step_and_halves_the_factor(dtype: torch.dtype) -> None:
    parameters = [nn.Parameter(torch.ones(4, dtype=dtype)) for _ in range(2)]
    scaler = LossScaler()
    for bad in (math.inf, -math.inf, math.nan):
        for parameter in parameters:
            parameter.grad = torch.ones(4, dtype=dtype)
        parameters[1].grad[2] = bad
        before = scaler.factor
        assert not scaler.unscale(parameters)
        assert scaler.factor == before / 2


def test_a_step_that_overflows_moves_nothing() -> None:
    model, task = _model("gpt2", {"precision": "fp16"}), _Task("gpt2")
    plan = run_stage(STEP, StepPlan(), KNOBS, {"precision": "fp16"})
    optimizer = build_optimizer(model.parameters(), OptimPlan(), base_rate=3e-4)
    helpers = Helpers(scaler=LossScaler())
    helpers.scaler.factor = 2.0**40
    before = [p.detach().clone() for p in model.parameters()]
    loss = train_step(task, model, optimizer, task.batch, plan, device=CPU, helpers=helpers)
    assert math.isfinite(loss)
    assert helpers.scaler.factor == 2.0**39
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_the_factor_grows_again_and_gradients_are_divided_by_it() -> None:
    parameter, scaler = nn.Parameter(torch.zeros(3)), LossScaler()
    for step in range(1, scaling.STEPS_BETWEEN + 1):
        parameter.grad = torch.full((3,), scaler.factor)
        assert scaler.unscale([parameter])
        assert parameter.grad.tolist() == [1.0, 1.0, 1.0]
        grown = step == scaling.STEPS_BETWEEN
        assert scaler.factor == scaling.FIRST_FACTOR * (2 if grown else 1)


def test_endless_overflow_is_said() -> None:
    parameter, scaler = nn.Parameter(torch.zeros(1)), LossScaler()
    parameter.grad = torch.tensor([math.nan])
    while scaler.factor > scaling.LEAST_FACTOR:
        assert not scaler.unscale([parameter])
    with pytest.raises(ModelError, match="however much the loss is scaled down"):
        scaler.unscale([parameter])


def _kept(config: dict[str, Value]) -> int:
    """Bytes that a forward pass leaves."""
    model, plan = _model("llama", config), run_stage(STEP, StepPlan(), KNOBS, config)
    storages = LiveStorages("cpu")
    storages.adopt((*model.parameters(), *model.buffers()), "weights")
    held = storages.live_bytes
    with storages, contexts(plan.around_forward, CPU):
        out = model(**tiny.inputs("llama", batch=16, tokens=32)).logits
    assert out.requires_grad
    return storages.live_bytes - held


def test_narrow_activations_take_fewer_bytes() -> None:
    kept = {value: _kept({"precision": value}) for value in ("fp32", *NARROW)}
    assert kept["bf16"] == kept["fp16"] < 0.7 * kept["fp32"]
    assert kept["bf16_mixed"] == kept["fp16_mixed"] < 0.85 * kept["fp32"]


@pytest.mark.parametrize("precision", ["fp32", *NARROW])
def test_evaluation_computes_as_training_did(precision: str) -> None:
    config: dict[str, Value] = {"precision": precision}
    model = _model("llama", config).eval()
    plan = run_stage(EVALUATE, EvalPlan(), KNOBS, config)
    with torch.no_grad(), contexts(plan.around_forward, CPU):
        assert tiny.output(model, "llama").dtype is PRODUCTS.get(precision, torch.float32)


def test_tf32_is_set_and_taken_back() -> None:
    before = torch.get_float32_matmul_precision()
    model = _model("llama", {"precision": "tf32"})
    assert torch.get_float32_matmul_precision() == "high"
    run_stage(DEPLOY, model, KNOBS, {"precision": "tf32"})
    assert torch.get_float32_matmul_precision() == before == "highest"


def test_attention_kernels_are_spelled_as_transformers_does() -> None:
    spelled = {
        value: run_stage(LOAD, LoadPlan(), KNOBS, {"attention": value}).attention
        for value in ATTENTION.domain.grid()
    }
    assert spelled == {
        "sdpa": "sdpa", "eager": "eager", "flash": "flash_attention_2", "flex": "flex_attention",
    }  # fmt: skip


OLD, NEW = (Device(kind="cuda", capability=capability) for capability in ((7, 5), (8, 0)))
HOPPER = Device(kind="cuda", capability=(9, 0))
SLOW, FAST = Device(kind="cpu"), Device(kind="cpu", bf16=True)


@pytest.mark.parametrize(
    ("knob", "value", "device", "config", "family", "sentence"),
    [
        (PRECISION, "tf32", FAST, {}, "llama", "set precision to fp32"),
        (PRECISION, "tf32", OLD, {}, "llama", "tf32 needs 8.0"),
        (PRECISION, "bf16", OLD, {}, "llama", "bf16 needs 8.0"),
        (PRECISION, "bf16_mixed", OLD, {}, "llama", "bf16_mixed needs 8.0"),
        (PRECISION, "bf16_mixed", SLOW, {}, "llama", "no instructions for products in 16 bits"),
        (PRECISION, "fp16_mixed", SLOW, {}, "llama", "no instructions for products in 16 bits"),
        (PRECISION, "fp16_mixed", OLD, {}, "llama", None),
        (PRECISION, "fp16_mixed", FAST, {}, "llama", None),
        (PRECISION, "bf16", SLOW, {}, "llama", None),
        (ATTENTION, "flash", FAST, {}, "llama", "cannot be trained on a CPU"),
        (ATTENTION, "flex", FAST, {}, "llama", "cannot be trained on a CPU"),
        (ATTENTION, "flash", OLD, {}, "llama", "needs 8.0"),
        (ATTENTION, "flash", NEW, {}, "llama", "set precision to bf16"),
        (ATTENTION, "flash", NEW, {"precision": "bf16"}, "llama", "needs flash_attn"),
        (ATTENTION, "flash", NEW, {"precision": "bf16"}, "t5", "no flash attention for models"),
        (ATTENTION, "flex", NEW, {}, "gpt2", "no flex attention for models"),
        (ATTENTION, "flex", NEW, {}, "llama", None),
        (ATTENTION, "eager", FAST, {}, "lstm", "a recurrent model has no attention"),
        (FLOAT8, "yes", FAST, {}, "llama", "a CPU has no instructions"),
        (FLOAT8, "yes", NEW, {}, "llama", "float8 products need 8.9"),
        (FLOAT8, "yes", HOPPER, {}, "gpt2", "no plain linear layers"),
        (FLOAT8, "yes", HOPPER, {}, "llama", "set precision to bf16"),
        (FLOAT8, "yes", HOPPER, {"lora.rank": 4}, "llama", "lora.rank to 0"),
        (FLOAT8, "yes", HOPPER, {"precision": "bf16"}, "llama", "needs torchao"),
    ],
)
def test_reasons_are_sentences(knob, value, device, config, family, sentence) -> None:
    context = Context(config=config, device=device, model=ModelFacts(family=family))
    reason = knob.blocked(value, context)
    assert reason is None if sentence is None else sentence in str(reason)
    assert knob.blocked(knob.neutral, context) is None
