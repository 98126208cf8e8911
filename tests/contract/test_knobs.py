"""What every knob owes, for each of its values: adding one adds its tests.

1. Neutral is the identity. 2. EXACT keeps loss and gradients. 3. Every value trains or is blocked
with a sentence. 4. Bytes move the way they should. 5. Values survive JSON. 6. What is deployed
loads with plain transformers. `test_knob_pairs.py` has the pairs.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from autotune.core import companions
from autotune.core.config import Config
from autotune.core.context import Context, Device, ModelFacts
from autotune.core.domains import Value
from autotune.core.errors import UnknownName
from autotune.core.knob import Knob, Numerics, run_stage
from autotune.knobs import BUILTIN, knob
from autotune.knobs.stages import ADAPT, STEP, Adaptation, OptimPlan, StepPlan
from tests import tiny_models as tiny
from tests.contract.knob_trial import CHOICES, EXPENSIVE, FEATURES, Trial, reason, with_companions

FAMILIES = tiny.TASKS
VALUES = [(k, v) for k in BUILTIN for v in k.domain.grid()]


def _id(choice: object) -> str:
    if isinstance(choice, tuple):
        return "=".join(str(getattr(part, "name", part)) for part in choice)
    return str(choice)


def test_names_are_unique_and_found() -> None:
    assert len({k.name for k in BUILTIN}) == len(BUILTIN)
    assert all(knob(k.name) is k for k in BUILTIN)
    with pytest.raises(UnknownName, match="unknown knob 'checkpoiting'") as caught:
        knob("checkpoiting")
    assert "did you mean 'checkpointing'?" in str(caught.value.help)
    assert "autotune spaces knobs" in str(caught.value.help)


def test_order_of_application() -> None:
    order = [k.name for k in BUILTIN]
    chain = ["prune.ffn", "prune.heads", "weight_bits", "lora.rank", "checkpointing"]
    assert sorted(chain, key=order.index) == chain


@pytest.mark.parametrize("choice", VALUES, ids=_id)
def test_values_survive_json_and_have_a_label(choice: tuple[Knob, Value]) -> None:
    knob_, value = choice
    config = Config({knob_.name: value}, BUILTIN)
    restored = Config(json.loads(json.dumps(config.to_json())), BUILTIN)
    assert restored == config
    assert restored.fingerprint == config.fingerprint
    assert len(config.differences(BUILTIN)) == (value != knob_.neutral)
    assert str(knob_.show(value)).strip("{}")
    assert knob_.help.endswith(".")


@pytest.mark.parametrize("knob_", BUILTIN, ids=lambda k: k.name)
def test_neutral_is_never_blocked_and_changes_nothing(knob_: Knob) -> None:
    for family in (*FAMILIES, "unheard-of"):
        context = Context(model=ModelFacts(family=family), global_batch=3)
        assert knob_.blocked(knob_.neutral, context) is None
    config = {knob_.name: knob_.neutral}
    model, plan = tiny.build("llama"), StepPlan()
    before = {name: id(p) for name, p in model.named_parameters()}
    state = Adaptation(model=model)
    assert run_stage(ADAPT, state, BUILTIN, config) is state
    assert run_stage(STEP, plan, BUILTIN, config) is plan
    assert {name: id(p) for name, p in model.named_parameters()} == before


TRAINED = [
    (choice, family)
    for choice in CHOICES
    for family in (("llama",) if choice[0].name in EXPENSIVE else FAMILIES)
]
EXACT = [(k, v) for k, v in CHOICES if k.numerics is Numerics.EXACT]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("choice", EXACT, ids=_id)
def test_exact_keeps_loss_and_gradients(choice: tuple[Knob, Value], family: str) -> None:
    knob_, value = choice
    config = with_companions(knob_, value, family)
    if config is None:
        assert len(str(reason({knob_.name: value}, family)).split()) > 5
        return
    peer = {name: other for name, other in config.items() if name != knob_.name}
    plain, changed = Trial(peer, family), Trial(config, family)
    assert changed.backward() == pytest.approx(plain.backward(), rel=1e-5)
    gradients = {name: p.grad for name, p in plain.model.named_parameters()}
    for name, parameter in changed.model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("choice", "family"), TRAINED, ids=_id)
def test_every_value_trains_or_is_blocked(choice: tuple[Knob, Value], family: str) -> None:
    knob_, value = choice
    config = with_companions(knob_, value, family)
    if config is None:
        assert len(str(reason({knob_.name: value}, family)).split()) > 5
        return
    trial = Trial(config, family)
    before = {name: p.detach().clone() for name, p in trial.model.named_parameters()}
    losses = trial.train(4)
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < losses[0] + 0.05
    trained = {n: p for n, p in trial.model.named_parameters() if p.requires_grad}
    moved = [n for n, p in trained.items() if not torch.equal(p, before[n])]
    assert len(moved) > 0.9 * len(trained)
    trial.compress()
    assert math.isfinite(trial.evaluate())


USUAL = ModelFacts(
    family="gpt2", layers=12, heads=12, kv_heads=12, hidden=768, ffn=3072, vocab=50257,
    pretrained=True,
)  # fmt: skip
RECURRENT = ModelFacts(family="lstm", layers=2, hidden=512)
CARD = Device(kind="cuda", bf16=True, capability=(9, 0), total_bytes=80 * 2**30)
LIBRARIES = frozenset({"peft", "torchao", "flash_attn"})


@pytest.mark.parametrize("choice", CHOICES, ids=_id)
def test_every_value_is_legal_somewhere(choice: tuple[Knob, Value]) -> None:
    knob_, value = choice
    for device in (Device(kind="cpu", bf16=True), CARD):
        for model in (USUAL, replace(USUAL, family="llama"), RECURRENT):
            for purpose in ("training", "inference"):
                around = Context(
                    device=device, model=model, global_batch=64, libraries=LIBRARIES,
                    features=FEATURES, purpose=purpose,
                )  # fmt: skip
                if companions.with_companions({knob_.name: value}, BUILTIN, around):
                    return
    pytest.fail(str(companions.first_reason({knob_.name: value}, BUILTIN, around)))


SHRINKS = [
    ({"precision": "bf16"}, {"weights": 0.51, "gradients": 0.51, "states": 1.0}),
    ({"prune.ffn": 0.5}, {"weights": 0.85, "gradients": 0.85, "states": 0.85}),
    ({"prune.heads": 0.5}, {"weights": 0.92, "gradients": 0.92, "states": 0.92}),
    ({"lora.rank": 4}, {"weights": 1.4, "gradients": 0.45, "states": 0.45}),
    ({"lora.rank": 4, "weight_bits": 8}, {"weights": 0.85, "gradients": 0.45, "states": 0.45}),
    ({"lora.rank": 4, "weight_bits": 4}, {"weights": 0.75, "gradients": 0.45, "states": 0.45}),
    ({"optimizer": "lion"}, {"weights": 1.0, "gradients": 1.0, "states": 0.5}),
    ({"optimizer": "adafactor"}, {"weights": 1.0, "gradients": 1.0, "states": 0.1}),
    ({"optimizer": "sgd"}, {"weights": 1.0, "gradients": 1.0, "states": 0.0}),
    ({"optimizer.bits": 8}, {"weights": 1.0, "gradients": 1.0, "states": 0.30}),
]


@pytest.mark.parametrize(("config", "shares"), SHRINKS, ids=[str(c) for c, _ in SHRINKS])
def test_bytes_shrink(config: dict[str, Value], shares: dict[str, float]) -> None:
    plain, lean = Trial({}, "llama").bytes(), Trial(config, "llama").bytes()
    for part, share in shares.items():
        assert lean[part] <= share * plain[part], (part, lean[part] / plain[part])


def test_plans_say_what_was_chosen() -> None:
    config = {"accumulation": 4, "loss_chunks": 16, "learning_rate": 3.0, "lora.rank": 8}
    trial = Trial({**config, "optimizer": "lion", "optimizer.bits": 8}, "llama")
    assert trial.plan == StepPlan(accumulation=4, loss_chunks=16)
    assert trial.optim == OptimPlan(name="lion", state_bits=8, rate_scale=3.0, adapters=True)


DEPLOYED = [
    {"precision": "bf16"},
    {"lora.rank": 4},
    {"lora.rank": 4, "precision": "bf16"},
    {"lora.rank": 4, "weight_bits": 4},
    {"lora.rank": 4, "weight_bits": 8, "prune.ffn": 0.5, "checkpointing": "full"},
    {"prune.ffn": 0.75},
    {"prune.ffn": 0.25, "precision": "bf16", "optimizer": "lion"},
    {"prune.heads": 0.5},
    {"prune.heads": 0.5, "lora.rank": 4, "weight_bits": 4},
]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("config", DEPLOYED, ids=str)
def test_deployed_models_load_with_plain_transformers(
    config: dict[str, Value], family: str, tmp_path
) -> None:
    trial = Trial({**config, "learning_rate": 10.0}, family)
    trial.train(3)
    trial.compress()
    with torch.no_grad():
        trained = tiny.output(trial.model.eval(), family).float()
    model = trial.saved()
    kinds = {type(module) for module in model.modules()}
    assert kinds == {type(module) for module in tiny.build_task(family).modules()}
    model.save_pretrained(tmp_path)
    restored = type(model).from_pretrained(tmp_path)
    assert restored.dtype is model.dtype
    with torch.no_grad():
        deployed, loaded = tiny.output(model, family), tiny.output(restored.eval(), family)
    assert torch.equal(loaded, deployed)
    tolerance = 0.05 if "precision" in config else 1e-4
    torch.testing.assert_close(deployed.float(), trained, atol=tolerance, rtol=tolerance)


def test_heads_stay_out_of_the_file_where_a_configuration_can_say_so() -> None:
    for family, stays in (("llama", True), ("t5", True), ("bert", False), ("gpt2", False)):
        trial = Trial({"prune.heads": 0.5}, family)
        before = sum(p.numel() for p in trial.model.parameters())
        after = sum(p.numel() for p in trial.saved().parameters())
        whole = sum(p.numel() for p in tiny.build_task(family).parameters())
        assert after == (before if stays else whole), family
        assert before < whole


BLOCKED = [
    (
        "accumulation",
        8,
        {"global_batch": 12},
        "does not divide the global batch of 12: use one of 1, 2, 4",
    ),
    ("lora.rank", 4, {"libraries": frozenset()}, "needs peft, which is not installed"),
    ("lora.rank", 4, {"model": tiny.facts("bert", pretrained=False)}, "trained from scratch"),
    ("loss_chunks", 4, {"model": tiny.facts("bert")}, "not over a vocabulary"),
    ("loss_chunks", 4, {"model": tiny.facts("gemma2")}, "scale or cap their logits"),
    ("optimizer.bits", 8, {"config": {"optimizer": "sgd"}}, "set optimizer to adamw or lion"),
    ("prune.ffn", 0.5, {"model": ModelFacts(family="mamba")}, "family 'mamba' are not known"),
    ("prune.heads", 0.5, {"model": ModelFacts(family="bloom")}, "family 'bloom' are not known"),
    ("prune.heads", 0.25, {"model": tiny.facts("llama")}, "would leave 1.5 of 2 key/value groups"),
    (
        "precision",
        "bf16",
        {"device": Device(kind="cuda", capability=(7, 5))},
        "compute capability 7.5",
    ),
]


@pytest.mark.parametrize(("name", "value", "around", "sentence"), BLOCKED)
def test_reasons_are_sentences(name: str, value: Value, around: dict, sentence: str) -> None:
    full = {"libraries": frozenset({"peft"}), "global_batch": 32, **around}
    assert sentence in str(knob(name).blocked(value, Context(**full)))
