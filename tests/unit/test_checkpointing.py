"""Blocks and norms that are computed again give the same loss and gradients, from fewer bytes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from autotune.core.context import Context, ModelFacts
from autotune.core.domains import Value
from autotune.core.errors import ModelError
from autotune.core.knob import run_stage
from autotune.knobs import blocks
from autotune.knobs.attention import ATTENTION
from autotune.knobs.checkpointing import CHECKPOINTING
from autotune.knobs.lora import LORA_RANK
from autotune.knobs.recompute_norms import RECOMPUTE_NORMS, find_norms
from autotune.knobs.stages import ADAPT, DEPLOY, LOAD, Adaptation, LoadPlan
from autotune.trial.anatomy import LiveStorages
from tests import tiny_models as tiny

KNOBS = (ATTENTION, LORA_RANK, RECOMPUTE_NORMS, CHECKPOINTING)
FAMILIES = ("gpt2", "llama", "bert", "t5")
VALUES = [value for value in CHECKPOINTING.domain.grid() if value != "none"]


def _model(family: str, config: dict[str, Value], *, dropout: bool = False) -> nn.Module:
    load = run_stage(LOAD, LoadPlan(), KNOBS, config)
    model = tiny.build(family, attention=load.attention, dropout=dropout)
    return run_stage(ADAPT, Adaptation(model=model), KNOBS, config).model


def _loss(model: nn.Module, family: str, *, batch: int = 4) -> Tensor:
    cached = {} if family == "bert" else {"use_cache": False}
    out = model(**tiny.inputs(family, batch=batch, tokens=16), **cached)
    said = out.logits if "logits" in out else out.last_hidden_state
    return said.square().mean() + said.mean()


def _trained(family: str, config: dict[str, Value], **build: bool) -> dict[str, Tensor]:
    model = _model(family, config, **build)
    results = {}
    for micro in range(2):  # gradients of two micro-batches meet
        torch.manual_seed(micro)
        loss = _loss(model, family, batch=2 + 2 * micro)
        loss.backward()
        results[f"loss {micro}"] = loss.detach()
    return results | {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def _bytes(family: str, config: dict[str, Value]) -> tuple[int, int]:
    """Bytes that a forward pass leaves, and the peak of forward and backward."""
    model = _model(family, config)
    storages = LiveStorages("cpu")
    storages.adopt((*model.parameters(), *model.buffers()), "weights")
    held = storages.live_bytes
    with storages:
        loss = _loss(model, family, batch=16)
        kept = storages.live_bytes - held
        loss.backward()
    return kept, storages.peak_bytes - held


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("around", [{}, {"lora.rank": 4}, {"attention": "eager"}], ids=str)
@pytest.mark.parametrize("value", [*VALUES, "norms"])
def test_same_to_the_bit(family: str, around: dict[str, Value], value: str) -> None:
    if family == "t5" and "lora.rank" in around:
        pytest.skip("the bare T5 has no head that adapters could leave out")
    change = {"recompute.norms": "yes"} if value == "norms" else {"checkpointing": value}
    plain, changed = _trained(family, around), _trained(family, around | change)
    assert plain.keys() == changed.keys()
    if family == "t5":  # adds up the gradients of its shared position bias in another order
        torch.testing.assert_close(changed, plain, atol=1e-5, rtol=1e-4)
    else:
        assert all(torch.equal(changed[name], plain[name]) for name in plain)


@pytest.mark.parametrize("value", ["selective", "full"])
def test_dropout_repeats_its_mask(value: str) -> None:
    plain = _trained("bert", {}, dropout=True)
    changed = _trained("bert", {"checkpointing": value}, dropout=True)
    assert all(torch.equal(changed[name], plain[name]) for name in plain)


@pytest.mark.parametrize("family", FAMILIES)
def test_fewer_bytes_the_more_is_recomputed(family: str) -> None:
    bytes_of = {v: _bytes(family, {"checkpointing": v}) for v in CHECKPOINTING.domain.grid()}
    kept = {value: sizes[0] for value, sizes in bytes_of.items()}
    assert kept["full"] < kept["every_other"] <= kept["every_third"] < kept["none"]
    assert kept["full"] < kept["selective"] < kept["none"]
    peaks = {value: sizes[1] for value, sizes in bytes_of.items()}
    assert all(peaks[value] < peaks["none"] for value in VALUES)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_norms_keep_their_input_only(family: str) -> None:
    kept, peak = _bytes(family, {})
    less, lower = _bytes(family, {"recompute.norms": "yes"})
    assert less < 0.9 * kept
    assert lower < peak


def test_evaluation_recomputes_nothing_and_deploying_leaves_no_trace() -> None:
    for config in ({"checkpointing": "full"}, {"recompute.norms": "yes"}):
        model = _model("llama", config)
        with torch.no_grad():
            _loss(model.eval(), "llama")
        deployed = run_stage(DEPLOY, model, KNOBS, config)
        plain = tiny.build("llama")
        for module, like in zip(deployed.modules(), plain.modules(), strict=True):
            assert set(vars(module)) == set(vars(like))


class _Plain(nn.Module):
    """A block that transformers does not mark."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.linear(x).tanh()


def test_plain_modules_can_be_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(_Plain(), _Plain())
    monkeypatch.setattr(blocks, "find_blocks", lambda model: list(model.named_children()))
    x = torch.randn(4, 8)
    model(x).sum().backward()
    plain = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    state = Adaptation(model=model)
    run_stage(ADAPT, state, KNOBS, {"checkpointing": "full"})
    model(x).sum().backward()
    assert [block.calls for block in model] == [3, 3]
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), plain, strict=True))
    model.eval()(x)
    assert [block.calls for block in model] == [4, 4]
    run_stage(DEPLOY, model, KNOBS, {"checkpointing": "full"})
    assert not any("forward" in vars(block) for block in model)


def test_a_model_without_norms_is_told_so() -> None:
    assert find_norms(nn.Linear(2, 2)) == []
    state = Adaptation(model=nn.Linear(2, 2))
    with pytest.raises(ModelError, match="no norms"):
        run_stage(ADAPT, state, KNOBS, {"recompute.norms": "yes"})


@pytest.mark.parametrize(
    ("knob", "value", "config", "family", "sentence"),
    [
        (CHECKPOINTING, "full", {}, "lstm", "a recurrent model has no blocks"),
        (CHECKPOINTING, "selective", {"attention": "flex"}, "llama", "set checkpointing to full"),
        (RECOMPUTE_NORMS, "yes", {"checkpointing": "full"}, "llama", "set recompute.norms to no"),
        (RECOMPUTE_NORMS, "yes", {}, "lstm", "a recurrent model has no norms"),
        (RECOMPUTE_NORMS, "yes", {}, "gpt2", "fused and keep their input only"),
    ],
)
def test_reasons_are_sentences(knob, value, config, family, sentence) -> None:
    context = Context(config=config, model=ModelFacts(family=family))
    assert sentence in str(knob.blocked(value, context))
    assert knob.blocked(knob.neutral, context) is None
    assert knob.blocked(value, Context()) is None
