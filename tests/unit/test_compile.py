"""A compiled model trains as the plain one does, from fewer bytes, and is itself afterwards."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import Tensor, nn

from autotune.core.context import Context, Device, ModelFacts
from autotune.core.domains import Value
from autotune.core.knob import run_stage
from autotune.knobs.activation_budget import ACTIVATION_BUDGET
from autotune.knobs.compile import COMPILE, EXCLUSIONS
from autotune.knobs.lora import LORA_RANK
from autotune.knobs.stages import (
    ADAPT,
    COMPRESS,
    DEPLOY,
    PARALLELISE,
    STEP,
    Adaptation,
    StepPlan,
)
from autotune.trial.loop import contexts
from autotune.trial.measure import _tensor_peak
from tests import tiny_models as tiny

KNOBS = (LORA_RANK, COMPILE, ACTIVATION_BUDGET)
CPU = torch.device("cpu")
PARTITIONER: dict[str, Value] = {"compile": "partitioner"}


def _model(config: dict[str, Value]) -> nn.Module:
    torch.compiler.reset()
    model = run_stage(ADAPT, Adaptation(model=tiny.build("llama")), KNOBS, config).model
    return run_stage(PARALLELISE, model, KNOBS, config)


def _loss(model: nn.Module, config: dict[str, Value]) -> Tensor:
    ids = tiny.inputs("llama", batch=16, tokens=64)["input_ids"]
    plan = run_stage(STEP, StepPlan(), KNOBS, config)
    with contexts(plan.around_forward, CPU):
        logits = model(input_ids=ids).logits[:, :-1]
        return nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def _trained(config: dict[str, Value]) -> tuple[dict[str, Tensor], int]:
    """Loss and summed gradients of two micro-batches, and the peak of the second one."""
    model = _model(config)
    loss = _loss(model, config)
    loss.backward()
    del loss
    with _tensor_peak() as peak:
        last = _loss(model, config)
        last.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {"loss": last.detach(), **gradients}, peak()


@pytest.fixture(scope="module")
def plain() -> tuple[dict[str, Tensor], int]:
    return _trained({})


def test_trains_as_the_plain_model_from_fewer_bytes(plain: tuple[dict[str, Tensor], int]) -> None:
    peaks = [plain[1]]
    for budget in (1.0, 0.5):
        compiled, peak = _trained({**PARTITIONER, "activation_budget": budget})
        torch.testing.assert_close(compiled, plain[0], atol=1e-6, rtol=1e-4)
        peaks.append(peak)
    assert peaks[1] < 0.9 * peaks[0]
    assert peaks[2] < 0.9 * peaks[1]


def test_adapters_are_compiled_too() -> None:
    adapters: dict[str, Value] = {"lora.rank": 4}
    expected, most = _trained(adapters)
    compiled, peak = _trained(adapters | PARTITIONER)
    torch.testing.assert_close(compiled, expected, atol=1e-6, rtol=1e-4)
    assert peak < most


@pytest.mark.parametrize("stage", [COMPRESS, DEPLOY])
def test_the_model_keeps_its_class_and_is_itself_afterwards(stage) -> None:
    before = tiny.build("llama")
    model = _model(PARTITIONER)
    assert type(model) is type(before)
    assert model._compiled_call_impl is not None
    assert set(model.state_dict()) == set(before.state_dict())
    model = run_stage(stage, model, KNOBS, PARTITIONER)
    assert model._compiled_call_impl is None


def _context(config: dict[str, Value], kind: str = "cpu", family: str = "llama") -> Context:
    return Context(config=config, device=Device(kind=kind), model=ModelFacts(family=family))


@pytest.mark.parametrize("exclusion", EXCLUSIONS, ids=lambda e: f"{e.knob} {e.backends[0]}")
def test_what_does_not_compose_is_blocked_by_a_sentence(exclusion) -> None:
    for backend in exclusion.backends:
        reason = COMPILE.blocked(backend, _context({exclusion.knob: "another"}, "cuda"))
        assert f"set {exclusion.knob} to {exclusion.allowed[0]}, or compile to none" in str(reason)
        for value in exclusion.allowed:
            assert COMPILE.blocked(backend, _context({exclusion.knob: value}, "cuda")) is None
    assert COMPILE.blocked("none", _context({exclusion.knob: "another"})) is None


@pytest.mark.parametrize("found", [None, "/usr/bin/g++"])
def test_inductor_needs_a_compiler_on_a_cpu(
    found: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: found)
    reason = COMPILE.blocked("inductor", _context({}))
    assert (reason is None) == (found is not None)
    assert found or "needs a C++ compiler" in str(reason)
    assert COMPILE.blocked("partitioner", _context({})) is None


@pytest.mark.parametrize(
    ("knob", "value", "config", "family", "sentence"),
    [
        (COMPILE, "cudagraphs", {}, "llama", "need a CUDA device"),
        (COMPILE, "partitioner", {}, "lstm", "leaves a recurrent layer as it is"),
        (ACTIVATION_BUDGET, 0.5, {}, "llama", "set compile to partitioner"),
        (ACTIVATION_BUDGET, 0.5, {"compile": "cudagraphs"}, "llama", "set compile to partitioner"),
        (
            ACTIVATION_BUDGET,
            0.5,
            {**PARTITIONER, "checkpointing": "full"},
            "llama",
            "nothing left to choose",
        ),
    ],
)
def test_reasons_are_sentences(knob, value, config, family, sentence) -> None:
    context = _context(config, family=family)
    assert sentence in str(knob.blocked(value, context))
    assert knob.blocked(knob.neutral, context) is None
