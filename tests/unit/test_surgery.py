"""Pruning: the pruned model equals the model whose cut units give zero."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from autotune.core.errors import ModelError
from autotune.knobs import architectures, surgery
from autotune.knobs.blocks import dense_weight
from tests import tiny_models as tiny

FAMILIES = tuple(tiny.CONFIGS)
HEADED = tuple(family for family in FAMILIES if family in architectures.ATTENTION_HEADS)


def _silence_inputs(layer: nn.Module, cut: torch.Tensor) -> None:
    with torch.no_grad():
        dense_weight(layer)[:, cut] = 0.0


def _others(kept: torch.Tensor, count: int) -> torch.Tensor:
    return torch.tensor([unit for unit in range(count) if unit not in set(kept.tolist())])


def _same_output(pruned: nn.Module, masked: nn.Module, family: str) -> None:
    with torch.no_grad():
        got, expected = tiny.output(pruned.eval(), family), tiny.output(masked.eval(), family)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("share", [0.25, 0.75])
@pytest.mark.parametrize("family", FAMILIES)
def test_feed_forward_equals_masking(family: str, share: float) -> None:
    masked, pruned = tiny.build(family), tiny.build(family)
    kept = surgery.prune_feed_forward(pruned, share)
    assert len(kept) >= tiny.LAYERS
    (shape,) = {
        shape
        for shape in architectures.FEED_FORWARD[family]
        if surgery._has(masked.get_submodule(next(iter(kept))), (*shape.inputs, shape.output))
    }
    for name, units in kept.items():
        output = masked.get_submodule(name).get_submodule(shape.output)
        width = dense_weight(output).shape[1]
        assert len(units) == architectures.kept_width(width, share) < width
        _silence_inputs(output, _others(units, width))
    _same_output(pruned, masked, family)


@pytest.mark.parametrize("family", HEADED)
def test_heads_equal_masking(family: str) -> None:
    masked, pruned = tiny.build(family), tiny.build(family)
    kept = surgery.prune_heads(pruned, 0.5)
    assert len(kept) >= tiny.LAYERS
    shape = architectures.ATTENTION_HEADS[family]
    for name, groups in kept.items():
        output = masked.get_submodule(name).get_submodule(shape.output)
        count = 2 * len(groups)
        width = dense_weight(output).shape[1]
        lost = _others(groups, count)[:, None] * (width // count) + torch.arange(width // count)
        _silence_inputs(output, lost.flatten())
    _same_output(pruned, masked, family)


@pytest.mark.parametrize("family", HEADED)
def test_pruned_models_train(family: str) -> None:
    model = tiny.build(family)
    surgery.prune_feed_forward(model, 0.5)
    surgery.prune_heads(model, 0.5)
    tiny.output(model, family).float().square().mean().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(gradients) > 10
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)


def test_the_strongest_units_stay() -> None:
    model = tiny.build("llama")
    mlp = model.model.layers[0].mlp
    with torch.no_grad():
        mlp.down_proj.weight[:, 5:21] *= 100
    kept = surgery.prune_feed_forward(model, 0.75)
    assert kept["model.layers.0.mlp"].tolist() == list(range(5, 21))


def test_cut_weights_own_their_memory_and_embeddings_stay_tied() -> None:
    model = tiny.build("gpt2")
    before = model.transformer.h[0].mlp.c_fc.weight
    surgery.prune_feed_forward(model, 0.5)
    after = model.transformer.h[0].mlp.c_fc.weight
    assert after.untyped_storage().nbytes() * 2 == before.untyped_storage().nbytes()
    assert after.is_contiguous()
    assert model.lm_head.weight is model.transformer.wte.weight


@pytest.mark.parametrize("family", FAMILIES)
def test_feed_forward_reloads_with_plain_transformers(family: str, tmp_path) -> None:
    model = tiny.build(family).eval()
    surgery.prune_feed_forward(model, 0.5)
    model.save_pretrained(tmp_path)
    _same_output(type(model).from_pretrained(tmp_path), model, family)


@pytest.mark.parametrize("family", HEADED)
def test_heads_reload_where_the_table_says_so(family: str, tmp_path) -> None:
    model = tiny.build(family).eval()
    surgery.prune_heads(model, 0.5)
    model.save_pretrained(tmp_path)
    if architectures.ATTENTION_HEADS[family].reloads:
        _same_output(type(model).from_pretrained(tmp_path), model, family)
    else:
        with pytest.raises((RuntimeError, ValueError)):
            type(model).from_pretrained(tmp_path)


@pytest.mark.parametrize("prune", [surgery.prune_feed_forward, surgery.prune_heads])
def test_unknown_families_are_refused(prune) -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(ModelError, match="does not know models of the family 'Linear'"):
        prune(model, 0.5)


def test_part_of_a_group_is_refused() -> None:
    with pytest.raises(ModelError, match="2 key/value groups"):
        surgery.prune_heads(tiny.build("llama"), 0.25)


@pytest.mark.parametrize(
    ("groups", "share", "kept"),
    [(4, 0.25, 3), (4, 0.5, 2), (2, 0.25, None), (1, 0.5, None), (12, 0.25, 9), (3, 0.5, None)],
)
def test_kept_groups(groups: int, share: float, kept: int | None) -> None:
    assert architectures.kept_groups(groups, share) == kept


@pytest.mark.parametrize(
    ("width", "share", "kept"), [(3072, 0.5, 1536), (3072, 0.25, 2304), (64, 0.75, 16), (8, 0.5, 8)]
)
def test_kept_width(width: int, share: float, kept: int) -> None:
    assert architectures.kept_width(width, share) == kept
