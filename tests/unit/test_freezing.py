"""Freezing: what stays as it was loaded, what has no gradients, and what is not kept for them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from autotune.core.context import Context, ModelFacts
from autotune.core.errors import ModelError
from autotune.core.knob import run_stage
from autotune.knobs.blocks import find_blocks
from autotune.knobs.checkpointing import CHECKPOINTING
from autotune.knobs.freeze_embeddings import FREEZE_EMBEDDINGS
from autotune.knobs.freeze_layers import FREEZE_LAYERS, frozen_blocks
from autotune.knobs.prune_ffn import PRUNE_FFN
from autotune.knobs.stages import ADAPT, Adaptation
from tests import tiny_models as tiny

KNOBS = (PRUNE_FFN, FREEZE_LAYERS, FREEZE_EMBEDDINGS, CHECKPOINTING)


def frozen(family: str, **config: object) -> nn.Module:
    """A model after its knobs; names of values have `_` for `.`."""
    values = {name.replace("_", "."): value for name, value in config.items()}
    state = Adaptation(model=tiny.build_task(family))
    return run_stage(ADAPT, state, KNOBS, values).model


def still(model: nn.Module) -> set[str]:
    """Names of the parameters that do not train."""
    return {name for name, p in model.named_parameters() if not p.requires_grad}


def train(model: nn.Module, family: str, steps: int = 2) -> None:
    """A few steps that move every parameter that has a gradient."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.01)
    for _ in range(steps):
        tiny.task_loss(model, family).backward()
        optimizer.step()


def saved_bytes(model: nn.Module, family: str) -> int:
    """Bytes that a forward pass keeps for backward, parameters aside."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        tiny.task_loss(model, family)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize(
    ("blocks", "counts"),
    [
        (1, (0, 0, 0)),
        (2, (1, 1, 1)),
        (3, (1, 2, 2)),
        (4, (1, 2, 3)),
        (6, (2, 3, 5)),
        (12, (3, 6, 9)),
    ],
)
def test_shares_are_whole_blocks_and_never_all(blocks: int, counts: tuple[int, ...]) -> None:
    shares = [share for share in FREEZE_LAYERS.domain.grid() if share]
    assert tuple(frozen_blocks(blocks, share) for share in shares) == counts


@pytest.mark.parametrize("family", tiny.TASKS)
@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_the_lowest_blocks_of_each_stack_stay(family: str, checkpointing: str) -> None:
    model = frozen(family, freeze_layers=0.5, checkpointing=checkpointing)
    blocks = [f"{name}." for name, _ in find_blocks(model)]
    lowest = tuple(name for name in blocks if name.endswith(".0."))
    assert len(lowest) * 2 == len(blocks)
    names = {name for name, _ in model.named_parameters()}
    always = still(frozen(family))  # Whisper's sinusoids never train
    assert still(model) == always | {name for name in names if name.startswith(lowest)}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(model, family)
    for name, parameter in model.named_parameters():
        stays = name.startswith(lowest) or name in always
        assert (parameter.grad is None) is stays, name
        assert torch.equal(parameter, before[name]) is stays, name


INPUTS = {
    "gpt2": {"transformer.wte.weight", "transformer.wpe.weight"},
    "llama": {"model.embed_tokens.weight"},
    "bert": {
        "bert.embeddings.word_embeddings.weight",
        "bert.embeddings.position_embeddings.weight",
        "bert.embeddings.token_type_embeddings.weight",
        "bert.embeddings.LayerNorm.weight",
        "bert.embeddings.LayerNorm.bias",
    },
    "t5": {"shared.weight"},
    "bart": {"model.shared.weight"}
    | {
        f"model.{stack}.{name}"
        for stack in ("encoder", "decoder")
        for name in ("embed_positions.weight", "layernorm_embedding.weight")
    }
    | {f"model.{stack}.layernorm_embedding.bias" for stack in ("encoder", "decoder")},
    "vit": {
        "vit.embeddings.cls_token",
        "vit.embeddings.position_embeddings",
        "vit.embeddings.patch_embeddings.projection.weight",
        "vit.embeddings.patch_embeddings.projection.bias",
    },
    "whisper": {
        "model.decoder.embed_tokens.weight",
        "model.decoder.embed_positions.weight",
        "model.encoder.embed_positions.weight",
    }
    | {f"model.encoder.conv{n}.{name}" for n in (1, 2) for name in ("weight", "bias")},
}


@pytest.mark.parametrize("family", tiny.TASKS)
def test_all_below_the_first_block_stays(family: str) -> None:
    model = frozen(family, freeze_embeddings="yes")
    assert still(model) == INPUTS[family]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(model, family)
    for name, parameter in model.named_parameters():
        stays = name in INPUTS[family]
        assert (parameter.grad is None) is stays, name
        assert torch.equal(parameter, before[name]) is stays, name


def test_a_tied_output_layer_stays_and_an_untied_one_trains() -> None:
    tied, untied = frozen("gpt2", freeze_embeddings="yes"), frozen("llama", freeze_embeddings="yes")
    assert tied.lm_head.weight is tied.transformer.wte.weight
    assert not tied.lm_head.weight.requires_grad
    assert untied.lm_head.weight.requires_grad


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert", "vit"])
def test_frozen_blocks_keep_no_activations_once_nothing_below_them_trains(family: str) -> None:
    full = saved_bytes(frozen(family), family)
    layers = saved_bytes(frozen(family, freeze_layers=0.5), family)
    both_model = frozen(family, freeze_layers=0.5, freeze_embeddings="yes")
    both = saved_bytes(both_model, family)
    assert both < layers < full
    # What is left is what one block keeps, and the loss: a little above half of two blocks.
    above = saved_bytes(_without_first_block(frozen(family, freeze_embeddings="yes")), family)
    assert both == pytest.approx(above, rel=0.1)
    heard: list[bool] = []
    (_, first), (_, second) = find_blocks(both_model)[:2]
    for block in (first, second):
        block.register_forward_pre_hook(lambda module, args: heard.append(args[0].requires_grad))
    tiny.task_loss(both_model, family)
    assert heard == [False, False]


def _without_first_block(model: nn.Module) -> nn.Module:
    (name, _), *_ = find_blocks(model)
    del model.get_submodule(name.rpartition(".")[0])[0]
    return model


def test_pruned_and_checkpointed_blocks_freeze_too() -> None:
    model = frozen("llama", prune_ffn=0.5, freeze_layers=0.75, checkpointing="full")
    assert still(model) == {
        n for n, _ in model.named_parameters() if n.startswith("model.layers.0")
    }
    train(model, "llama")


def test_what_has_nothing_to_freeze_is_refused() -> None:
    for name, value in (("freeze.layers", 0.5), ("freeze.embeddings", "yes")):
        with pytest.raises(ModelError) as caught:
            run_stage(ADAPT, Adaptation(model=nn.Linear(1, 1)), KNOBS, {name: value})
        assert str(caught.value.help)
    model = _without_first_block(tiny.build("llama"))
    with pytest.raises(ModelError, match="has one block only, which must train"):
        run_stage(ADAPT, Adaptation(model=model), KNOBS, {"freeze.layers": 0.25})


@pytest.mark.parametrize(
    ("knob", "value"), [(FREEZE_LAYERS, 0.75), (FREEZE_EMBEDDINGS, "yes")], ids=lambda v: str(v)[:9]
)
def test_reasons_are_sentences(knob, value) -> None:
    def reason(**around) -> str | None:
        return knob.blocked(value, Context(**{"model": tiny.facts("bert"), **around}))

    assert reason() is None
    assert reason(model=ModelFacts()) is None
    assert reason(config={"weight_bits": 4, "prune.ffn": 0.5}) is None
    assert f"set {knob.name} to {knob.neutral}, or lora.rank to 0" in str(
        reason(config={"lora.rank": 8})
    )
    assert "trained from scratch" in str(reason(model=tiny.facts("bert", pretrained=False)))
    assert knob.blocked(knob.neutral, Context(config={"lora.rank": 8})) is None


def test_one_block_cannot_be_spared() -> None:
    one = ModelFacts(family="bert", layers=1, pretrained=True)
    assert "has one block only" in str(FREEZE_LAYERS.blocked(0.25, Context(model=one)))
