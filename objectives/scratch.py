"""Models that objectives make up themselves, for when there is nothing pretrained to start from.

All are small enough to learn something on a CPU in seconds, and of families that every knob knows.
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

BERT = "bert"
"""What is typed after `--model` for `medium_bert`."""

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


def medium_bert(vocab: int) -> BertConfig:
    """Return an encoder of 6 layers and width 256, most of whose parameters are in its layers.

    Args:
        vocab: Size of its tokenizer's vocabulary.
    """
    config = small_bert(vocab)
    config.update(
        {
            "hidden_size": 256,
            "num_hidden_layers": 6,
            "intermediate_size": 1024,
            "max_position_embeddings": 128,
        }
    )
    return config


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
    """Learn a lower-case vocabulary of word pieces from texts: the same texts, the same pieces.

    References:
        Wu et al. 2016, arXiv:1609.08144.
    """
    learner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    learner.normalizer = normalizers.BertNormalizer(lowercase=True)
    learner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    letters = sorted(
        {letter for text in texts for letter in learner.normalizer.normalize_str(text)}
    )
    # Pieces that are equally frequent are merged in the order of their letters' numbers, which
    # follow from a hash map, another one each time, unless letters are named beforehand.
    named = [*_SPECIAL, *letters, *(f"##{letter}" for letter in letters)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=_WORDPIECES, special_tokens=named, show_progress=False
    )
    learner.train_from_iterator(texts, trainer)
    tokenizer = Tokenizer(models.WordPiece(learner.get_vocab(), unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = learner.normalizer, learner.pre_tokenizer
    tokenizer.decoder = decoders.WordPiece()
    ends = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=ends
    )
    return restore_tokenizer(tokenizer.to_str())


def restore_tokenizer(learnt: str) -> PreTrainedTokenizerFast:
    """Return what `train_tokenizer` returned.

    Args:
        learnt: Its `backend_tokenizer.to_str()`.
    """
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # untyped there
        tokenizer_object=Tokenizer.from_str(learnt),
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=512,
    )
