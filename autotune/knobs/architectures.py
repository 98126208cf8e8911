"""Which layers of which models are feed-forward or attention, as a table: pure data, no torch.

Pruning cuts rows of some matrices and columns of others, and has to know which. Models of one
family (`model_type` of their configuration) share names, and many families share a shape, so a
family is one line here. `knobs/surgery.py` does the cutting. A family that is not here is refused
with a sentence.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FeedForward:
    """A feed-forward layer: matrices into the inner width, and one out of it.

    Attributes:
        inputs: Names of the matrices whose outputs are the inner width, below their owner.
        output: Name of the matrix whose inputs are the inner width.
        settings: Entries of the model's configuration that hold the inner width.
        parts: How often the inner width stands in the outputs of each: 2 if the gate is fused in.
    """

    inputs: tuple[str, ...]
    output: str
    settings: tuple[str, ...]
    parts: int = 1


@dataclass(frozen=True, slots=True)
class Attention:
    """An attention layer.

    Attributes:
        query: Name of the query matrix below its owner; of the fused one, if keys are None.
        key: Name of the key matrix, or None if query, key and value are fused in this order.
        value: Name of the value matrix, or None.
        output: Name of the output matrix.
        owner: Where the module that knows the head size is, below the owner; empty if the same.
        counts: Attributes of that module that hold the number of heads.
        widths: Attributes of that module that hold heads times head size.
        settings: Entries of the model's configuration that hold the number of heads.
        uniform: Whether all layers of a stack must lose the same heads.
        reloads: Whether plain transformers can load a pruned model: its configuration must be
            able to say the head size apart from the width.
        interleaved: Whether a fused matrix has query, key and value of each head together.
    """

    query: str
    key: str | None
    value: str | None
    output: str
    owner: str = ""
    counts: tuple[str, ...] = ()
    widths: tuple[str, ...] = ()
    settings: tuple[str, ...] = ("num_attention_heads",)
    uniform: bool = False
    reloads: bool = False
    interleaved: bool = False


_BERT_LIKE = ("bert", "camembert", "electra", "ernie", "roberta", "xlm-roberta")
_LLAMA_LIKE = (
    *("gemma", "gemma2", "gemma3_text", "granite", "llama", "mistral"),
    *("qwen2", "qwen3", "smollm3"),
)
_BART_LIKE = ("bart", "blenderbot", "m2m_100", "marian", "mbart", "pegasus", "whisper")
_VIT_LIKE = ("deit", "vit")
_SPEECH = ("hubert", "wav2vec2")

_GATED = FeedForward(("gate_proj", "up_proj"), "down_proj", ("intermediate_size",))
_BERT = FeedForward(("intermediate.dense",), "output.dense", ("intermediate_size",))
_MARIAN = FeedForward(("fc1",), "fc2", ("encoder_ffn_dim", "decoder_ffn_dim"))
_PLAIN = FeedForward(("fc1",), "fc2", ("intermediate_size",))
_CODE = FeedForward(("c_fc",), "c_proj", ("intermediate_size",))
_T5 = (
    FeedForward(("wi_0", "wi_1"), "wo", ("d_ff",)),
    FeedForward(("wi",), "wo", ("d_ff",)),
)

FEED_FORWARD: dict[str, tuple[FeedForward, ...]] = {
    **dict.fromkeys((*_LLAMA_LIKE, "olmo", "olmo2", "stablelm"), (_GATED,)),
    **dict.fromkeys((*_BERT_LIKE, "deberta-v2"), (_BERT,)),
    **dict.fromkeys(_BART_LIKE, (_MARIAN,)),
    **dict.fromkeys((*_VIT_LIKE, "phi"), (_PLAIN,)),
    **dict.fromkeys(("gpt_neo", "starcoder2"), (_CODE,)),
    **dict.fromkeys(("mt5", "t5", "umt5"), _T5),
    **dict.fromkeys(_SPEECH, (FeedForward(("intermediate_dense",), "output_dense",
                                          ("intermediate_size",)),)),
    "distilbert": (FeedForward(("lin1",), "lin2", ("hidden_dim",)),),
    "gpt2": (FeedForward(("c_fc",), "c_proj", ("n_inner",)),),
    "gpt_neox": (FeedForward(("dense_h_to_4h",), "dense_4h_to_h", ("intermediate_size",)),),
    "gptj": (FeedForward(("fc_in",), "fc_out", ("n_inner",)),),
    "modernbert": (FeedForward(("Wi",), "Wo", ("intermediate_size",), parts=2),),
    "opt": (FeedForward(("fc1",), "fc2", ("ffn_dim",)),),
    "phi3": (FeedForward(("gate_up_proj",), "down_proj", ("intermediate_size",), parts=2),),
}  # fmt: skip
"""Feed-forward layers by family; the first shape that a module has is its shape."""

_GROUPED = Attention(
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    settings=("num_attention_heads", "num_key_value_heads"),
    reloads=True,
)
_BERT_HEADS = Attention(
    "self.query",
    "self.key",
    "self.value",
    "output.dense",
    owner="self",
    counts=("num_attention_heads",),
    widths=("all_head_size",),
)
_BART_HEADS = Attention(
    "q_proj",
    "k_proj",
    "v_proj",
    "out_proj",
    counts=("num_heads",),
    settings=("encoder_attention_heads", "decoder_attention_heads"),
)
_T5_HEADS = Attention("q", "k", "v", "o", counts=("n_heads",), widths=("inner_dim",),
                      settings=("num_heads",), uniform=True, reloads=True)  # fmt: skip

ATTENTION_HEADS: dict[str, Attention] = {
    **dict.fromkeys((*_LLAMA_LIKE, "mixtral", "olmo", "qwen3_moe", "starcoder2"), _GROUPED),
    **dict.fromkeys(_BERT_LIKE, _BERT_HEADS),
    **dict.fromkeys(_BART_LIKE, _BART_HEADS),
    **dict.fromkeys(_VIT_LIKE, Attention("q_proj", "k_proj", "v_proj", "o_proj",
                                         counts=("num_attention_heads",))),
    **dict.fromkeys(("mt5", "t5"), _T5_HEADS),
    **dict.fromkeys(_SPEECH, Attention("q_proj", "k_proj", "v_proj", "out_proj",
                                       counts=("num_heads",))),
    "distilbert": Attention("q_lin", "k_lin", "v_lin", "out_lin", counts=("n_heads",),
                            widths=("dim",), settings=("n_heads",)),
    "gpt2": Attention("c_attn", None, None, "c_proj", counts=("num_heads",),
                      widths=("embed_dim", "split_size"), settings=("n_head",)),
    "gpt_neo": Attention("q_proj", "k_proj", "v_proj", "out_proj", counts=("num_heads",),
                         widths=("embed_dim",), settings=("num_heads",)),
    "gpt_neox": Attention("query_key_value", None, None, "dense", interleaved=True),
    "gptj": Attention("q_proj", "k_proj", "v_proj", "out_proj", counts=("num_attention_heads",),
                      widths=("embed_dim",), settings=("n_head",)),
    "opt": Attention("q_proj", "k_proj", "v_proj", "out_proj", counts=("num_heads",)),
    "phi": Attention("q_proj", "k_proj", "v_proj", "dense",
                     settings=("num_attention_heads", "num_key_value_heads"), reloads=True),
}  # fmt: skip
"""Attention layers by family."""

BLOCKS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        (*_LLAMA_LIKE, *_BERT_LIKE, *_VIT_LIKE, *_SPEECH, "deberta-v2", "gpt_neox", "mixtral",
         "modernbert", "olmo", "olmo2", "opt", "phi", "phi3", "stablelm", "starcoder2"),
        ("num_hidden_layers",),
    ),
    **dict.fromkeys(_BART_LIKE, ("encoder_layers", "decoder_layers")),
    **dict.fromkeys(("mt5", "t5", "umt5"), ("num_layers", "num_decoder_layers")),
    **dict.fromkeys(("gpt2", "gptj"), ("n_layer",)),
    "distilbert": ("n_layers",),
    "gpt_neo": ("num_layers",),
}  # fmt: skip
"""Entries of the configuration that count the blocks of a family, the decoder's last."""

RECURRENT = frozenset({"gru", "lstm"})
"""Families whose layers are recurrent."""


def kept_groups(groups: int, share: float) -> int | None:
    """Return how many of `groups` key/value groups stay when `share` is pruned.

    Returns:
        At least 1, or None if the share leaves no whole number of groups.
    """
    kept = groups * (1.0 - share)
    return round(kept) if kept >= 1.0 and abs(kept - round(kept)) < 1e-9 else None


def kept_width(width: int, share: float) -> int:
    """Return the feed-forward width that stays, a multiple that packs and multiplies well."""
    multiple = 64 if width >= 512 else 8
    return min(width, max(multiple, round(width * (1.0 - share) / multiple) * multiple))


def kept_blocks(blocks: int, share: float) -> int:
    """Return how many of `blocks` stay when `share` is dropped, to the nearest whole number."""
    return blocks - round(blocks * share)
