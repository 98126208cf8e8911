"""Importance: what matters to the loss stays, and measuring it leaves no trace."""

from __future__ import annotations

from collections.abc import Iterator
from unittest import mock

import pytest
import torch
from torch import nn

from autotune.core.context import Context
from autotune.core.errors import ModelError
from autotune.core.knob import run_stage
from autotune.knobs.importance import block_scores, taylor, unit_scores
from autotune.knobs.prune_importance import PRUNE_IMPORTANCE
from autotune.knobs.pruning import prune_blocks, prune_units
from autotune.knobs.recurrence import RECURRENT_UNITS
from autotune.knobs.stages import ADAPT, Adaptation
from autotune.knobs.surgery import FEED_FORWARDS, HEADS
from tests import tiny_models as tiny

MEASURED = ("taylor", "activation")
LIVE = torch.arange(3, 64, 4)  # a quarter of 64 units


def _losses(family: str, batches: int = 2):
    def losses(model: nn.Module) -> Iterator[torch.Tensor]:
        for seed in range(batches):
            inputs = tiny.inputs(family, seed=seed)
            out = model(**inputs)
            states = out.logits if "logits" in out else out.last_hidden_state
            yield states.float().square().mean()

    return losses


def _state(model: nn.Module, family: str, importance: str) -> Adaptation:
    return Adaptation(model=model, losses=_losses(family), importance=importance)


def _deep(family: str, layers: int) -> nn.Module:
    changed = {**tiny.CONFIGS[family], "num_hidden_layers": layers}
    with mock.patch.dict(tiny.CONFIGS, {family: changed}):
        return tiny.build(family)


def _dead_outside(count: int, live: torch.Tensor) -> torch.Tensor:
    return torch.tensor([unit for unit in range(count) if unit not in set(live.tolist())])


@pytest.mark.parametrize("importance", MEASURED)
def test_live_units_stay_though_dead_ones_have_greater_weights(importance: str) -> None:
    def planted() -> nn.Module:
        model = tiny.build("opt")
        for layer in model.model.decoder.layers:
            dead = _dead_outside(64, LIVE)
            with torch.no_grad():
                layer.fc1.weight[dead] *= 10.0
                layer.fc1.bias[LIVE] = 1.0
                layer.fc1.bias[dead] = -1e4  # never above zero, where ReLU begins
        return model

    kept = prune_units(_state(planted(), "opt", importance), FEED_FORWARDS, 0.75)
    assert [units.tolist() for units in kept.values()] == [LIVE.tolist()] * tiny.LAYERS
    kept = prune_units(_state(planted(), "opt", "magnitude"), FEED_FORWARDS, 0.75)
    assert not {unit for units in kept.values() for unit in units.tolist()} & set(LIVE.tolist())


@pytest.mark.parametrize(
    ("importance", "silenced"), [("taylor", "o_proj"), ("activation", "v_proj")]
)
def test_live_heads_stay(importance: str, silenced: str) -> None:
    model = tiny.build("llama")
    for layer in model.model.layers:
        attention = layer.self_attn
        with torch.no_grad():
            if silenced == "o_proj":  # two of four heads, those of the first of two groups
                attention.o_proj.weight[:, : tiny.HIDDEN // 2] = 0.0
            else:
                attention.v_proj.weight[: attention.head_dim] = 0.0
            attention.q_proj.weight[: tiny.HIDDEN // 2] *= 100.0
    kept = prune_units(_state(model, "llama", importance), HEADS, 0.5)
    assert [groups.tolist() for groups in kept.values()] == [[1], [1]]


@pytest.mark.parametrize("importance", MEASURED)
@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU])
def test_live_cells_stay(cell: type[nn.RNNBase], importance: str) -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict(
        {
            "layers": cell(12, 16, num_layers=2, bidirectional=True, batch_first=True),
            "head": nn.Linear(32, 3),
        }
    )
    dead = torch.arange(0, 16, 2)
    gate = 48 if cell is nn.LSTM else 16  # of the output; of what is kept of the state before
    sign = -1e4 if cell is nn.LSTM else 1e4
    for name, parameter in model["layers"].named_parameters():
        with torch.no_grad():
            if name.startswith("bias_ih"):
                parameter[dead + gate] = sign
            elif name.startswith("weight"):
                for start in range(0, len(parameter), 16):
                    parameter[start + dead] *= 5.0

    def losses(measured: nn.Module) -> Iterator[torch.Tensor]:
        chance = torch.Generator().manual_seed(0)
        for _ in range(2):
            states, _ = measured["layers"](torch.randn(3, 6, 12, generator=chance))
            yield measured["head"](states.mean(1)).square().mean()

    state = Adaptation(model=model, losses=losses, importance=importance)
    kept = prune_units(state, RECURRENT_UNITS, 0.5)
    assert {tuple(units.tolist()) for units in kept.values()} == {tuple(range(1, 16, 2))}
    assert len(kept) == 4
    assert next(losses(model)).isfinite()


@pytest.mark.parametrize("importance", MEASURED)
@pytest.mark.parametrize("family", ["llama", "bert"])
def test_blocks_that_change_least_go(family: str, importance: str) -> None:
    model = _deep(family, 5)
    blocks = model.model.layers if family == "llama" else model.bert.encoder.layer
    with torch.no_grad():
        for name, parameter in blocks[3].named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")) or "output.dense" in name:
                parameter.zero_()
        for module in (*blocks[2].modules(), *blocks[3].modules()):
            if isinstance(module, nn.LayerNorm):  # twice is once: BERT normalises after adding
                module.reset_parameters()
    scores = block_scores(_state(model, family, importance), list(blocks))
    assert int(scores[1:-1].argmin()) == 2
    gone = prune_blocks(_state(model, family, importance), 0.25)
    assert list(gone.values()) == [[3]]


def test_taylor_is_the_gradient_of_a_factor_on_each_unit() -> None:
    model = tiny.build("bert").eval()
    found = FEED_FORWARDS.find(model)
    scores = taylor(_state(model, "bert", "taylor"), found)
    factors = [torch.ones(tiny.FFN, requires_grad=True) for _ in found]
    for units, factor in zip(found, factors, strict=True):
        reader = model.get_submodule(units.outgoing[0].tensor.removesuffix(".weight"))
        reader.register_forward_pre_hook(lambda _, args, factor=factor: (args[0] * factor,))
    expected = [torch.zeros(tiny.FFN) for _ in found]
    for loss in _losses("bert")(model):
        for total, part in zip(expected, torch.autograd.grad(loss, factors), strict=True):
            total += part.abs()
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-7)


def test_block_taylor_is_the_change_of_the_loss_to_first_order() -> None:
    model = _deep("llama", 3).eval()
    block, step = model.model.layers[1], 1e-3
    score = block_scores(_state(model, "llama", "taylor"), [block])

    def less(module, args, output):
        states = output[0] if isinstance(output, tuple) else output
        return args[0] + (1.0 - step) * (states - args[0])

    with torch.no_grad():
        whole = [float(loss) for loss in _losses("llama")(model)]
        block.register_forward_hook(less)
        weaker = [float(loss) for loss in _losses("llama")(model)]
    change = sum(abs(a - b) for a, b in zip(whole, weaker, strict=True)) / step
    assert float(score) == pytest.approx(change, rel=0.02)


@pytest.mark.parametrize("importance", MEASURED)
def test_heads_of_a_stack_that_shares_its_bias_go_together(importance: str) -> None:
    kept = prune_units(_state(tiny.build("t5"), "t5", importance), HEADS, 0.5)
    by_kind: dict[str, set[tuple[int, ...]]] = {}
    for name, heads in kept.items():
        kind = f"{name.partition('.')[0]} {name.rpartition('.')[2]}"
        by_kind.setdefault(kind, set()).add(tuple(heads.tolist()))
    assert len(by_kind) == 3
    assert all(len(choices) == 1 for choices in by_kind.values())


@pytest.mark.parametrize("importance", MEASURED)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_measuring_leaves_no_trace(importance: str, dtype: str) -> None:
    model = tiny.build("gpt2", dtype=dtype, dropout=True)
    model.transformer.h[0].eval()
    model.transformer.h[1].mlp.c_proj.weight.requires_grad_(False)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    trains = {name: p.requires_grad for name, p in model.named_parameters()}
    modes = {name: module.training for name, module in model.named_modules()}
    chance = torch.get_rng_state()
    state = _state(model, "gpt2", importance)
    scores = unit_scores(state, FEED_FORWARDS, FEED_FORWARDS.find(model))
    block_scores(state, list(model.transformer.h))
    assert all(score.dtype is torch.float32 and bool((score > 0).any()) for score in scores)
    assert not any(score.requires_grad for score in scores)
    assert torch.equal(torch.get_rng_state(), chance)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert {name: p.requires_grad for name, p in model.named_parameters()} == trains
    for name, parameter in model.named_parameters():
        assert parameter.grad is None
        assert torch.equal(parameter, weights[name])
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert "forward" not in vars(module)


def test_batches_add_up() -> None:
    model = tiny.build("bert")
    found = FEED_FORWARDS.find(model)
    one, two = (
        taylor(Adaptation(model=model, losses=_losses("bert", n), importance="taylor"), found)
        for n in (1, 2)
    )
    assert all(
        bool((b >= a).all()) and not torch.equal(a, b) for a, b in zip(one, two, strict=True)
    )


@pytest.mark.parametrize("importance", MEASURED)
@pytest.mark.parametrize("losses", [None, lambda model: iter(())], ids=["none", "empty"])
def test_without_data_there_is_nothing_to_measure(importance: str, losses) -> None:
    state = Adaptation(model=tiny.build("bert"), losses=losses, importance=importance)
    with pytest.raises(ModelError, match="measured on training data") as caught:
        prune_units(state, FEED_FORWARDS, 0.5)
    assert "prune.importance to magnitude" in str(caught.value.help)
    with pytest.raises(ModelError, match="measured on training data"):
        prune_blocks(state, 0.5)


def test_losses_that_are_not_finite_are_refused() -> None:
    model = tiny.build("bert")
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight.fill_(torch.nan)
    for importance in MEASURED:
        with pytest.raises(ModelError, match="not finite"):
            prune_units(_state(model, "bert", importance), FEED_FORWARDS, 0.5)


def test_layers_that_the_loss_does_not_run_are_refused() -> None:
    model = tiny.build("bert")

    def losses(measured: nn.Module) -> Iterator[torch.Tensor]:
        yield measured.bert.embeddings.word_embeddings.weight.sum()

    state = Adaptation(model=model, losses=losses, importance="activation")
    with pytest.raises(ModelError, match="does not run"):
        prune_units(state, FEED_FORWARDS, 0.5)


def test_the_knob_chooses_and_says_when_it_means_nothing() -> None:
    state = Adaptation(model=nn.Linear(2, 2))
    chosen = run_stage(ADAPT, state, (PRUNE_IMPORTANCE,), {"prune.importance": "taylor"})
    assert chosen.importance == "taylor"
    assert run_stage(ADAPT, state, (PRUNE_IMPORTANCE,), {}) is state
    assert "no unit or block is pruned" in str(PRUNE_IMPORTANCE.blocked("taylor", Context()))
    assert PRUNE_IMPORTANCE.blocked("magnitude", Context()) is None
    for name in ("prune.ffn", "prune.heads", "prune.layers", "prune.recurrent"):
        assert PRUNE_IMPORTANCE.blocked("taylor", Context(config={name: 0.5})) is None
