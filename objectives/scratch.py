"""Models that objectives make up themselves, for when there is nothing pretrained to start from.

Both are small enough to learn something on a CPU in seconds, and of families that every knob knows.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import BertConfig, LlamaConfig, PreTrainedTokenizerFast

BYTES = 256
"""Vocabulary of a model over bytes, which needs no tokenizer."""

_WORDPIECES = 4096
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def small_bert(vocab: int) -> BertConfig:
    """Return an encoder of 2 layers and width 128.

    Args:
        vocab: Size of its tokenizer's vocabulary.
    """
    return BertConfig(
        vocab_size=vocab,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=512,
        pad_token_id=0,
    )


def small_llama() -> LlamaConfig:
    """Return a decoder over bytes, of 4 layers and width 128, with two query heads to a key."""
    return LlamaConfig(
        vocab_size=BYTES,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=384,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )


def train_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Learn a lower-case vocabulary of word pieces from texts.

    References:
        Wu et al. 2016, arXiv:1609.08144.
    """
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=_WORDPIECES, special_tokens=list(_SPECIAL), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    ends = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=ends
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # untyped there
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=512,
    )
