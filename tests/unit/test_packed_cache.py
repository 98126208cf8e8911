"""The packed key/value cache: what attention sees of the past, and what it costs to keep."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.cache_utils import Cache, DynamicCache

from autotune.core.errors import ModelError
from autotune.knobs.bytes import storage_bytes
from autotune.knobs.packed_cache import BLOCK, PackedLayer, PackedStates, make_cache
from tests import tiny_models as tiny

TOKENS = 5 * BLOCK
WINDOW = 48

torch.set_num_threads(1)


def _model(family: str, **changes: object) -> nn.Module:
    """A random decoder whose attention is far from even, and that reads `TOKENS` tokens."""
    config = AutoConfig.for_model(family, **{**tiny.CONFIGS[family], **changes})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4.0)
    return model


def _ids(batch: int = 3) -> Tensor:
    return torch.randint(3, tiny.VOCAB, (batch, TOKENS), generator=torch.Generator().manual_seed(0))


def _read(model: nn.Module, cache: Cache, piece: int) -> Tensor:
    """Log-probabilities of all tokens, read in pieces."""
    parts = []
    with torch.no_grad():
        for ids in _ids().split(piece, dim=1):
            out = model(input_ids=ids, past_key_values=cache, use_cache=True)
            parts.append(out.logits.log_softmax(-1))
    return torch.cat(parts, dim=1)


def _loss(scores: Tensor) -> float:
    targets = _ids()[:, 1:]
    return float(nn.functional.nll_loss(scores[:, :-1].flatten(0, 1), targets.flatten()))


def _bytes(cache: Cache) -> int:
    held: list[Tensor] = []
    for layer in cache.layers:
        if isinstance(layer, PackedLayer):
            for states in (layer.packed_keys, layer.packed_values):
                held += [t for t in (states.recent, *(states.blocks or ())) if t is not None]
        held += [t for t in (layer.keys, layer.values) if t is not None]
    return storage_bytes(held)


FAMILIES = [
    ("gpt2", {}),
    ("llama", {}),
    ("mistral", {"sliding_window": None}),
    ("mistral", {"sliding_window": WINDOW}),
    ("gemma2", {"sliding_window": WINDOW}),
]


@pytest.mark.parametrize("piece", [BLOCK, 7, TOKENS])
@pytest.mark.parametrize(("family", "changes"), FAMILIES)
def test_eight_bits_read_as_the_whole_text_at_once(
    family: str, changes: dict[str, object], piece: int
) -> None:
    model = _model(family, **changes)
    with torch.no_grad():
        whole = model(input_ids=_ids(), use_cache=False).logits.log_softmax(-1)
    exact = _read(model, make_cache(model, 16), piece)
    torch.testing.assert_close(exact, whole, atol=1e-4, rtol=1e-4)
    packed = _read(model, make_cache(model, 8), piece)
    assert float((packed - whole).abs().mean()) < 0.02
    assert _loss(packed) == pytest.approx(_loss(whole), rel=2e-3)
    if piece == TOKENS:  # what is new is seen as it is
        torch.testing.assert_close(packed, whole, atol=1e-4, rtol=1e-4)


def test_error_falls_with_bits() -> None:
    model = _model("llama")
    exact = _read(model, make_cache(model, 16), 16)
    errors = [
        float((_read(model, make_cache(model, bits), 16) - exact).abs().mean())
        for bits in (2, 4, 8)
    ]
    assert errors[0] > 2 * errors[1] > 8 * errors[2] > 0


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_bytes_of_what_is_full_are_the_bits_and_one_more(bits: int) -> None:
    model = _model("llama", head_dim=BLOCK)
    exact, packed = make_cache(model, 16), make_cache(model, bits)
    for cache in (exact, packed):
        _read(model, cache, BLOCK)
    assert type(exact) is DynamicCache
    values = 2 * tiny.LAYERS * 3 * 2 * TOKENS * BLOCK  # keys and values of two groups of heads
    assert _bytes(exact) == 4 * values
    assert _bytes(packed) == values * (bits + 1) / 8
    assert packed.get_seq_length() == TOKENS


def test_tokens_wait_until_a_block_is_full() -> None:
    states = PackedStates(4, along_tokens=False)
    new = torch.randn(1, 1, BLOCK - 1, 16)
    assert torch.equal(states.append(new), new)
    assert states.blocks is None
    assert states.tokens == BLOCK - 1
    more = torch.randn(1, 1, 2, 16)
    assert torch.equal(states.append(more), torch.cat((new, more), dim=2))
    assert states.blocks is not None
    assert states.recent is not None
    assert torch.equal(states.recent, more[:, :, 1:])
    assert states.recent.untyped_storage().nbytes() == 16 * 4
    first = states.append(more)
    again = states.append(more)
    assert torch.equal(again[:, :, : first.shape[2]], first)  # packed once and for good


def test_channels_of_keys_and_tokens_of_values_have_scales_of_their_own() -> None:
    torch.manual_seed(0)
    states = torch.randn(2, 3, BLOCK, 40)
    for axis, along_tokens in ((-1, True), (-2, False)):
        size = 10.0 ** torch.arange(states.shape[axis]).remainder(4)
        scaled = states * (size if axis == -1 else size[:, None])
        packed = PackedStates(8, along_tokens=along_tokens)
        packed.append(scaled)
        rebuilt = packed.append(scaled[:, :, :0])
        error = (rebuilt - scaled).abs() / (size if axis == -1 else size[:, None])
        assert float(error.max()) < 0.02


def test_a_window_is_kept_in_whole_blocks() -> None:
    model = _model("mistral", sliding_window=WINDOW)
    cache = make_cache(model, 4)
    _read(model, cache, 16)
    layer = cache.layers[0]
    assert cache.is_sliding == [True] * tiny.LAYERS
    assert WINDOW - 1 <= layer.packed_keys.tokens < WINDOW - 1 + BLOCK
    assert layer.packed_values.tokens == layer.packed_keys.tokens
    assert cache.get_seq_length() == TOKENS


def test_generation_and_beams_follow_the_exact_cache() -> None:
    model = _model("llama")
    prompt = {"input_ids": _ids()[:, : BLOCK + 3], "attention_mask": torch.ones(3, BLOCK + 3)}
    for beams in (1, 3):
        options = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}
        found = [
            model.generate(**prompt, **options, num_beams=beams, past_key_values=cache)
            for cache in (make_cache(model, 16), make_cache(model, 8))
        ]
        assert float((found[0] == found[1]).float().mean()) > 0.9


def test_rows_are_chosen_repeated_and_forgotten() -> None:
    layer = PackedLayer(8)
    layer.batch_repeat_interleave(2)
    layer.reorder_cache(torch.tensor([0]))
    assert layer.get_mask_sizes(4) == (4, 0)
    keys = torch.randn(2, 1, BLOCK + 1, 16)
    layer.update(keys, keys)
    layer.batch_repeat_interleave(2)
    none = keys.new_zeros(4, 1, 0, 16)
    repeated, _ = layer.update(none, none)
    torch.testing.assert_close(repeated, keys.repeat_interleave(2, dim=0), atol=0.02, rtol=0.02)
    layer.reorder_cache(torch.tensor([3, 0]))
    chosen, _ = layer.update(none[:2], none[:2])
    assert torch.equal(chosen, repeated[[3, 0]])
    layer.reset()
    assert layer.get_seq_length() == 0
    assert layer.update(keys, keys)[0].shape == keys.shape


def test_models_without_such_a_cache_are_refused() -> None:
    with pytest.raises(ModelError, match="no decoder") as caught:
        make_cache(tiny.build("t5"), 8)
    assert caught.value.help == "set cache_bits to 16"
    with pytest.raises(ModelError, match="no decoder"):
        make_cache(nn.Linear(2, 2), 8)
    model = _model("llama")
    model.config.layer_types = ["linear_attention"] * tiny.LAYERS
    with pytest.raises(ModelError, match="something other than keys and values"):
        make_cache(model, 4)
