"""Structured pruning: the pruned model equals the model whose cut parts are silent."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from torch import nn

from autotune.core.context import Context, ModelFacts
from autotune.core.errors import ModelError
from autotune.core.knob import run_stage
from autotune.knobs import architectures
from autotune.knobs.depth import choose_blocks, drop_blocks, find_stacks, least_important, spread
from autotune.knobs.prune_layers import PRUNE_LAYERS
from autotune.knobs.prune_recurrent import PRUNE_RECURRENT
from autotune.knobs.pruning import prune_blocks, prune_units
from autotune.knobs.recurrence import RECURRENT_UNITS
from autotune.knobs.stages import ADAPT, Adaptation
from autotune.knobs.surgery import FEED_FORWARDS, HEADS
from autotune.knobs.units import Structure, silence
from tests import tiny_models as tiny

_USUAL, _GROUPED = tiny.CONFIGS["bert"], tiny.CONFIGS["llama"]
_PARTS = {**tiny.CONFIGS["bart"], "max_position_embeddings": 16}
_T5 = tiny.CONFIGS["t5"]
_PATCHES = tiny.CONFIGS["vit"]
_SPEECH = {
    **_USUAL, "conv_dim": (8,), "conv_stride": (4,), "conv_kernel": (4,),
    "num_feat_extract_layers": 1, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2,
    "mask_time_prob": 0.0, "layerdrop": 0.0,
}  # fmt: skip
MORE: dict[str, dict[str, object]] = {
    **dict.fromkeys(("blenderbot", "m2m_100", "marian", "mbart", "pegasus"), _PARTS),
    **dict.fromkeys(("camembert", "ernie", "xlm-roberta", "phi"), _USUAL),
    **dict.fromkeys(("granite", "olmo", "olmo2", "phi3", "smollm3", "stablelm"), _GROUPED),
    **dict.fromkeys(("mt5", "umt5"), _T5),
    "deberta-v2": {**_USUAL, "relative_attention": True, "pos_att_type": "p2c|c2p"},
    "deit": _PATCHES,
    "gemma": {**_GROUPED, "head_dim": 16},
    "gemma3_text": {**_GROUPED, "head_dim": 16, "sliding_window": 8},
    "gpt_neo": {
        "hidden_size": tiny.HIDDEN, "num_layers": tiny.LAYERS, "num_heads": tiny.HEADS,
        "vocab_size": tiny.VOCAB, "bos_token_id": 1, "eos_token_id": 2, "window_size": 4,
        "max_position_embeddings": 16,
        "attention_types": [[["global", "local"], 1]],
    },
    "gptj": {**tiny.CONFIGS["gpt2"], "rotary_dim": 4, "n_positions": 16},
    "mixtral": {**_GROUPED, "num_local_experts": 2},
    "modernbert": {**_USUAL, "cls_token_id": 1, "sep_token_id": 2},
    "qwen3_moe": {
        **_GROUPED, "head_dim": 16, "num_experts": 2, "num_experts_per_tok": 1,
        "moe_intermediate_size": 16,
    },
    "starcoder2": _GROUPED,
    **dict.fromkeys(("hubert", "wav2vec2"), _SPEECH),
}  # fmt: skip
CONFIGS = {**tiny.CONFIGS, **MORE}
EAGER = {"deberta-v2", "gpt_neo", "gptj"}  # have no other attention
WIDE = tuple(f for f in CONFIGS if f in architectures.FEED_FORWARD)
HEADED = tuple(f for f in CONFIGS if f in architectures.ATTENTION_HEADS)
DEEP = tuple(f for f in CONFIGS if f in architectures.BLOCKS)
SEQ2SEQ = {f for f in DEEP if len(architectures.BLOCKS[f]) == 2}


def _build(family: str, **changes: object) -> nn.Module:
    with mock.patch.dict(tiny.CONFIGS, {family: {**CONFIGS[family], **changes}}):
        return tiny.build(family, attention="eager" if family in EAGER else "sdpa")


def _deep(family: str) -> nn.Module:
    """A model of four blocks, in each of its stacks."""
    counts = dict.fromkeys(architectures.BLOCKS[family], 4)
    if family == "gpt_neo":
        counts["attention_types"] = [[["global", "local"], 2]]
    return _build(family, **counts)


def _output(model: nn.Module, family: str) -> torch.Tensor:
    if family in SEQ2SEQ and family not in tiny.CONFIGS:
        ids = tiny.inputs("bert")["input_ids"]
        return model(input_ids=ids, decoder_input_ids=ids.flip(1)).last_hidden_state
    if family in ("hubert", "wav2vec2"):
        sound = torch.randn(2, 40, generator=torch.Generator().manual_seed(0))
        return model(input_values=sound).last_hidden_state
    if family == "deit":
        return model(**tiny.inputs("vit")).last_hidden_state
    return tiny.output(model, family)


def _same_output(pruned: nn.Module, masked: nn.Module, family: str) -> None:
    with torch.no_grad():
        got, expected = _output(pruned.eval(), family), _output(masked.eval(), family)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def _prune(model: nn.Module, structure: Structure, share: float) -> dict[str, torch.Tensor]:
    return prune_units(Adaptation(model=model), structure, share)


def _others(kept: torch.Tensor, count: int) -> torch.Tensor:
    return torch.tensor([unit for unit in range(count) if unit not in set(kept.tolist())])


def _silence_reading(model: nn.Module, structure: Structure, kept: dict[str, torch.Tensor]) -> None:
    """Zero the columns that read the units that did not stay, and nothing else."""
    for units in structure.find(model):
        gone = _others(kept[units.name], units.count)
        assert 0 < len(gone) < units.count
        for slices in units.outgoing:
            with torch.no_grad():
                weight = model.get_parameter(slices.tensor)
                weight.index_fill_(slices.dim, slices.places(gone), 0.0)


def test_every_family_of_the_tables_is_tried() -> None:
    known = {*architectures.FEED_FORWARD, *architectures.ATTENTION_HEADS, *architectures.BLOCKS}
    assert known == set(CONFIGS)


@pytest.mark.parametrize("family", WIDE)
def test_narrow_equals_silence_and_reloads(family: str, tmp_path) -> None:
    silent, pruned = _build(family), _build(family)
    kept = _prune(pruned, FEED_FORWARDS, 0.75)
    assert len(kept) == tiny.LAYERS * (1 + (family in SEQ2SEQ))
    for units in FEED_FORWARDS.find(silent):
        assert len(kept[units.name]) == architectures.kept_width(units.count, 0.75)
    _silence_reading(silent, FEED_FORWARDS, kept)
    _same_output(pruned, silent, family)
    pruned.save_pretrained(tmp_path)
    _same_output(type(pruned).from_pretrained(tmp_path), pruned, family)


@pytest.mark.parametrize("family", HEADED)
def test_fewer_heads_equal_silence_and_reload_where_the_table_says_so(
    family: str, tmp_path
) -> None:
    silent, pruned = _build(family), _build(family)
    kept = _prune(pruned, HEADS, 0.5)
    assert len(kept) == tiny.LAYERS * (3 if family in SEQ2SEQ else 1)
    _silence_reading(silent, HEADS, kept)
    _same_output(pruned, silent, family)
    _output(pruned.train(), family).float().square().mean().backward()
    assert all(bool(p.grad.isfinite().all()) for p in pruned.parameters() if p.grad is not None)
    pruned.save_pretrained(tmp_path)
    if architectures.ATTENTION_HEADS[family].reloads:
        _same_output(type(pruned).from_pretrained(tmp_path), pruned, family)
    else:
        with pytest.raises((RuntimeError, ValueError)):
            type(pruned).from_pretrained(tmp_path)


@pytest.mark.parametrize("structure", [FEED_FORWARDS, HEADS], ids=lambda s: s.knob)
@pytest.mark.parametrize("family", ["gpt2", "llama", "bert", "t5", "gpt_neox"])
def test_silence_reaches_what_makes_units_too(family: str, structure: Structure) -> None:
    silent, pruned = _build(family), _build(family)
    kept = _prune(pruned, structure, 0.5)
    for units in structure.find(silent):
        silence(silent, units, _others(kept[units.name], units.count))
    _same_output(pruned, silent, family)
    _output(silent.train(), family).float().square().mean().backward()
    for units in structure.find(silent):
        gone = _others(kept[units.name], units.count)
        for slices in units.slices:
            if "relative_attention_bias" not in slices.tensor:
                gradient = silent.get_parameter(slices.tensor).grad
                assert not gradient.index_select(slices.dim, slices.places(gone)).any()


def test_the_strongest_units_stay() -> None:
    model = tiny.build("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[:, 5:21] *= 100
    kept = _prune(model, FEED_FORWARDS, 0.75)
    assert kept["model.layers.0.mlp"].tolist() == list(range(5, 21))


def test_cut_weights_own_their_memory_and_embeddings_stay_tied() -> None:
    model = tiny.build("gpt2")
    before = model.transformer.h[0].mlp.c_fc.weight
    _prune(model, FEED_FORWARDS, 0.5)
    after = model.transformer.h[0].mlp.c_fc.weight
    assert after.untyped_storage().nbytes() * 2 == before.untyped_storage().nbytes()
    assert after.is_contiguous()
    assert model.lm_head.weight is model.transformer.wte.weight


@pytest.mark.parametrize("family", DEEP)
def test_shallow_equals_passing_blocks_by_and_reloads(family: str, tmp_path) -> None:
    silent, pruned = _deep(family), _deep(family)
    gone = prune_blocks(Adaptation(model=pruned), 0.5)
    assert [len(stack.blocks) for stack in find_stacks(pruned)] == [2] * len(gone)
    for stack in find_stacks(silent):
        kept = [block for n, block in enumerate(stack.blocks) if n not in gone[stack.name]]
        assert kept[0] is stack.blocks[0]
        assert kept[-1] is stack.blocks[-1]
        for number in gone[stack.name]:  # whatever a block gives beside hidden states, stays
            stack.blocks[number].register_forward_hook(_hand_on, with_kwargs=True)
    _same_output(pruned, silent, family)
    pruned.save_pretrained(tmp_path)
    _same_output(type(pruned).from_pretrained(tmp_path), pruned, family)


def _hand_on(block, args, kwargs, output):
    states = args[0] if args else kwargs["hidden_states"]
    return (states, *output[1:]) if isinstance(output, tuple) else states


def test_shallow_models_still_have_a_cache() -> None:
    model = _deep("llama").eval()
    prune_blocks(Adaptation(model=model), 0.75)
    ids = tiny.inputs("llama")["input_ids"]
    with torch.no_grad():
        first = model(ids[:, :5], use_cache=True)
        second = model(ids[:, 5:], past_key_values=first.past_key_values).logits
        torch.testing.assert_close(second, model(ids).logits[:, 5:], atol=1e-5, rtol=1e-5)


def test_encoder_and_decoder_of_other_depths_keep_their_own(tmp_path) -> None:
    model = _build("t5", num_layers=4, num_decoder_layers=2).eval()
    prune_blocks(Adaptation(model=model), 0.5)
    assert (model.config.num_layers, model.config.num_decoder_layers) == (2, 1)
    assert (model.encoder.config.num_layers, model.decoder.config.num_layers) == (2, 1)
    assert hasattr(model.decoder.block[0].layer[0].SelfAttention, "relative_attention_bias")
    model.save_pretrained(tmp_path)
    _same_output(type(model).from_pretrained(tmp_path), model, "t5")


def test_settings_of_each_block_go_with_it() -> None:
    types = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
    model = _build("gemma2", num_hidden_layers=4, layer_types=types)
    drop_blocks(model, {"model.layers": [1, 2]})
    assert model.config.layer_types == [types[0], types[3]]
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == [0, 1]


def test_blocks_numbered_into_their_scale_are_refused() -> None:
    model = _build("gpt2", n_layer=4, scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(ModelError, match="scales attention by the number of each block"):
        choose_blocks(Adaptation(model=model), 0.5)


def test_a_share_of_no_block_and_a_family_without_blocks_are_refused() -> None:
    with pytest.raises(ModelError, match="drops none"):
        prune_blocks(Adaptation(model=tiny.build("llama")), 0.25)
    with pytest.raises(ModelError, match="does not know models of the family 'Linear'"):
        prune_blocks(Adaptation(model=nn.Linear(2, 2)), 0.5)


@pytest.mark.parametrize(
    ("blocks", "kept", "numbers"),
    [
        (12, 6, [0, 2, 4, 7, 9, 11]),
        (4, 2, [0, 3]),
        (5, 3, [0, 2, 4]),
        (6, 1, [0]),
        (3, 3, [0, 1, 2]),
    ],
)
def test_blocks_are_spread_evenly(blocks: int, kept: int, numbers: list[int]) -> None:
    assert spread(blocks, kept) == numbers


def test_least_important_blocks_go_but_not_the_ends() -> None:
    scores = [0.0, 3.0, 1.0, 2.0, 0.0]
    assert least_important(scores, 3) == [2, 3]
    assert least_important(scores, 2) == [2, 3, 1]
    assert least_important(scores, 1) == [2, 3, 1, 4]


@pytest.mark.parametrize("structure", [FEED_FORWARDS, HEADS], ids=lambda s: s.knob)
def test_unknown_families_are_refused(structure: Structure) -> None:
    with pytest.raises(ModelError, match="does not know models of the family 'Linear'"):
        _prune(nn.Linear(2, 2), structure, 0.5)


def test_part_of_a_group_is_refused() -> None:
    with pytest.raises(ModelError, match="2 key/value groups"):
        _prune(tiny.build("llama"), HEADS, 0.25)


def test_a_share_of_no_unit_is_refused() -> None:
    with pytest.raises(ModelError, match="cuts none of the 8 units"):
        _prune(_build("llama", intermediate_size=8), FEED_FORWARDS, 0.5)


class Recurrent(nn.Module):
    """Embeddings, recurrent layers, the mean over tokens, a linear head."""

    def __init__(self, cell=nn.LSTM, *, inner: int = 1, outer: int = 1, both: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        width = 16 * (1 + both)
        more = {"num_layers": inner, "bidirectional": both, "batch_first": True}
        self.embedding = nn.Embedding(32, 12)
        self.layers = nn.ModuleList(cell(12 if n == 0 else width, 16, **more) for n in range(outer))
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(width, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        states = self.embedding(ids)
        for layer in self.layers:
            states, _ = layer(states)
        return self.head(self.dropout(states).mean(1))


IDS = torch.arange(40).view(4, 10) % 32
SHAPES = [{}, {"inner": 2, "both": True}, {"outer": 2}, {"outer": 2, "inner": 2, "both": True}]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU])
def test_recurrent_equals_silence(cell: type[nn.RNNBase], shape: dict[str, int]) -> None:
    silent, pruned = Recurrent(cell, **shape).eval(), Recurrent(cell, **shape).eval()
    kept = _prune(pruned, RECURRENT_UNITS, 0.5)
    assert {len(units) for units in kept.values()} == {8}
    assert {layer.hidden_size for layer in pruned.layers} == {8}
    thoroughly = Recurrent(cell, **shape).eval()
    for units in RECURRENT_UNITS.find(thoroughly):
        silence(thoroughly, units, _others(kept[units.name], units.count))
    _silence_reading(silent, RECURRENT_UNITS, kept)
    torch.testing.assert_close(pruned(IDS), silent(IDS), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(pruned(IDS), thoroughly(IDS), atol=1e-6, rtol=1e-5)
    pruned.train()(IDS).square().sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in pruned.parameters())


def test_what_reads_a_recurrent_layer_must_be_plain() -> None:
    model = Recurrent()
    model.head = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3))
    with pytest.raises(ModelError, match=r"cannot be told what reads the 16 outputs of layers\.0"):
        _prune(model, RECURRENT_UNITS, 0.5)
    with pytest.raises(ModelError, match="no LSTM or GRU"):
        _prune(nn.Linear(2, 2), RECURRENT_UNITS, 0.5)
    model.layers = nn.ModuleList([nn.LSTM(12, 16, proj_size=4)])
    with pytest.raises(ModelError, match="projects its hidden state"):
        _prune(model, RECURRENT_UNITS, 0.5)


@pytest.mark.parametrize(
    ("knob", "value", "model", "sentence"),
    [
        (PRUNE_LAYERS, 0.5, ModelFacts(family="mamba"), "family 'mamba' are not known"),
        (PRUNE_LAYERS, 0.5, ModelFacts(family="lstm"), "family 'lstm' are not known"),
        (PRUNE_LAYERS, 0.25, ModelFacts(family="bert", layers=2), "comes to no whole one"),
        (PRUNE_LAYERS, 0.75, ModelFacts(family="bert", layers=1), "would leave none"),
        (PRUNE_LAYERS, 0.5, ModelFacts(family="bert", layers=2), None),
        (PRUNE_LAYERS, 0.75, ModelFacts(), None),
        (PRUNE_RECURRENT, 0.5, ModelFacts(family="bert"), "'bert' have no recurrent layers"),
        (PRUNE_RECURRENT, 0.25, ModelFacts(family="lstm", hidden=8), "none of 8 hidden units"),
        (PRUNE_RECURRENT, 0.5, ModelFacts(family="gru", hidden=512), None),
    ],
)
def test_reasons(knob, value: float, model: ModelFacts, sentence: str | None) -> None:
    reason = knob.blocked(value, Context(model=model))
    assert reason is None if sentence is None else sentence in str(reason)


def test_one_block_left_must_train() -> None:
    context = Context(config={"freeze.layers": 0.5}, model=ModelFacts(family="bert", layers=4))
    assert "leaves one of 4 blocks" in str(PRUNE_LAYERS.blocked(0.75, context))
    assert PRUNE_LAYERS.blocked(0.5, context) is None


def test_neutral_changes_nothing() -> None:
    state = Adaptation(model=tiny.build("llama"))
    config = {"prune.layers": 0.0, "prune.recurrent": 0.0}
    assert run_stage(ADAPT, state, (PRUNE_LAYERS, PRUNE_RECURRENT), config) is state


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
