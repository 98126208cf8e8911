"""The knobs of optimizers and gradients: what they set, and the sentences that block them."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from autotune.core.context import Context, Device, ModelFacts
from autotune.core.domains import Value
from autotune.core.knob import Knob, run_stage
from autotune.knobs.gradients import GRADIENTS
from autotune.knobs.optimizer import OPTIMIZER
from autotune.knobs.optimizer_bits import OPTIMIZER_BITS
from autotune.knobs.optimizer_in_backward import OPTIMIZER_IN_BACKWARD
from autotune.knobs.optimizer_kernel import OPTIMIZER_KERNEL
from autotune.knobs.optimizer_offload import OPTIMIZER_OFFLOAD
from autotune.knobs.optimizer_rank import OPTIMIZER_RANK
from autotune.knobs.optimizers import FAMILIES, KERNELS
from autotune.knobs.stages import OPTIMISE, STEP, OptimPlan, StepPlan
from autotune.knobs.zero_grad import ZERO_GRAD

KNOBS = (
    OPTIMIZER,
    OPTIMIZER_BITS,
    OPTIMIZER_RANK,
    OPTIMIZER_KERNEL,
    OPTIMIZER_IN_BACKWARD,
    OPTIMIZER_OFFLOAD,
    GRADIENTS,
    ZERO_GRAD,
)
CUDA = Device(kind="cuda", capability=(9, 0), bf16=True)


def _reason(knob: Knob, value: Value, config: Mapping[str, Value], **other: object) -> str | None:
    context = Context(config={**config, knob.name: value}, device=CUDA)
    for name, fact in other.items():
        context = Context(config=context.config, **{"device": CUDA, name: fact})  # type: ignore[arg-type]  # fields by name
    return knob.blocked(value, context)


def test_plans_say_what_was_chosen() -> None:
    config: dict[str, Value] = {
        "optimizer": "galore",
        "optimizer.bits": 4,
        "optimizer.rank": 32,
        "optimizer.in_backward": "yes",
        "gradients": "bf16",
    }
    assert run_stage(OPTIMISE, OptimPlan(), KNOBS, config) == OptimPlan(
        name="galore", state_bits=4, rank=32, in_backward=True, gradient_dtype="bfloat16"
    )
    other: dict[str, Value] = {"optimizer.kernel": "foreach", "optimizer.offload": "host"}
    plan = run_stage(OPTIMISE, OptimPlan(), KNOBS, other)
    assert plan == OptimPlan(kernel="foreach", offload=True)
    step = run_stage(STEP, StepPlan(), KNOBS, {"zero_grad": "keep"})
    assert step == StepPlan(keep_gradients=True)


def test_domains_are_what_is_implemented() -> None:
    assert set(OPTIMIZER.domain.grid()) == set(FAMILIES)
    assert set(OPTIMIZER_KERNEL.domain.grid()) == set(KERNELS)


@pytest.mark.parametrize("knob", KNOBS, ids=lambda knob: knob.name)
def test_every_value_is_free_in_some_surroundings_and_neutral_always(knob: Knob) -> None:
    needed = {"optimizer.rank": {"optimizer": "galore"}}
    for value in knob.domain.grid():
        assert _reason(knob, value, needed.get(knob.name, {})) is None
    crowded = {k.name: k.leanest for k in KNOBS} | {"precision": "fp16", "accumulation": 4}
    assert _reason(knob, knob.neutral, crowded) is None


BLOCKED = [
    (OPTIMIZER, "galore", {"lora.rank": 8}, "those of adapters are of a low rank already"),
    (OPTIMIZER, "apollo", {"lora.rank": 8}, "set optimizer to adamw, or lora.rank to 0"),
    (OPTIMIZER_BITS, 4, {"optimizer": "adafactor"}, "set optimizer to adamw or lion"),
    (OPTIMIZER_RANK, 8, {"optimizer": "muon"}, "set optimizer to galore or apollo"),
    (OPTIMIZER_KERNEL, "loop", {"optimizer": "lion"}, "no kernels for lion"),
    (OPTIMIZER_KERNEL, "loop", {"optimizer.bits": 16}, "no kernels for states in 16 bits"),
    (OPTIMIZER_KERNEL, "loop", {"precision": "bf16"}, "no kernels for weights in bf16"),
    (OPTIMIZER_KERNEL, "loop", {"gradients": "bf16"}, "with gradients in bf16"),
    (OPTIMIZER_KERNEL, "foreach", {"optimizer.in_backward": "yes"}, "one by one in the backward"),
    (OPTIMIZER_KERNEL, "foreach", {"optimizer.offload": "host"}, "or optimizer.offload to none"),
    (OPTIMIZER_IN_BACKWARD, "yes", {"accumulation": 4}, "set accumulation to 1"),
    (OPTIMIZER_IN_BACKWARD, "yes", {"precision": "fp16_mixed"}, "the loss is scaled in fp16_mixed"),
    (OPTIMIZER_IN_BACKWARD, "yes", {"optimizer.offload": "host"}, "wait for all gradients"),
    (GRADIENTS, "bf16", {"precision": "fp16"}, "have gradients in 16 bits already"),
    (ZERO_GRAD, "keep", {"optimizer.in_backward": "yes"}, "there are none to keep"),
]


@pytest.mark.parametrize(
    ("knob", "value", "config", "sentence"), BLOCKED, ids=[f"{b[0].name}-{b[2]}" for b in BLOCKED]
)
def test_what_excludes_each_other_says_so(
    knob: Knob, value: Value, config: dict[str, Value], sentence: str
) -> None:
    reason = _reason(knob, value, config)
    assert reason is not None
    assert sentence in reason
    assert "set " in reason


def test_mixed_precision_keeps_wide_gradients_and_torch_kernels() -> None:
    for precision in ("tf32", "bf16_mixed"):
        for knob, value in ((GRADIENTS, "bf16"), (OPTIMIZER_KERNEL, "loop")):
            assert _reason(knob, value, {"precision": precision}) is None


@pytest.mark.parametrize("value", ["muon", "galore", "apollo"])
def test_recurrent_models_have_no_blocks(value: str) -> None:
    reason = _reason(OPTIMIZER, value, {}, model=ModelFacts(family="lstm"))
    assert reason is not None
    assert "'lstm' have none: set optimizer to adamw" in reason


def test_states_are_on_the_host_already_where_that_is_the_device() -> None:
    reason = _reason(OPTIMIZER_OFFLOAD, "host", {}, device=Device(kind="cpu"))
    assert reason is not None
    assert "set optimizer.offload to none" in reason


def test_ranks_must_be_below_the_width_of_the_model() -> None:
    narrow = ModelFacts(family="gpt2", hidden=128)
    config: dict[str, Value] = {"optimizer": "apollo"}
    assert _reason(OPTIMIZER_RANK, 32, config, model=narrow) is None
    reason = _reason(OPTIMIZER_RANK, 128, config, model=narrow)
    assert reason is not None
    assert "no less than the width of 128" in reason
