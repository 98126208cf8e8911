"""Model folders and data files that objectives are pointed at, made on the spot."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from tests import tiny_models as tiny

_WORDS = {
    "sea": ("wave", "tide", "salt", "harbour", "sail", "anchor", "shore", "gull", "deck", "storm"),
    "field": ("plough", "barley", "hedge", "cow", "fence", "soil", "harvest", "barn", "seed"),
}


def write_rows(path: Path, count: int = 80) -> Path:
    """JSON lines of two classes; texts of 4 to 14 words, no two with the same beginning."""
    chance = random.Random(0)
    rows = []
    for place in range(count):
        label = ("sea", "field")[place % 2]
        words = chance.choices(_WORDS[label], k=chance.randint(4, 14))
        rows.append(json.dumps({"text": f"{place} {' '.join(words)}", "label": label}))
    path.write_text("\n".join(rows))
    return path


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of whole words, with an end-of-text token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: place for place, token in enumerate(["<end>", *alphabet])}
    merges = []
    for word in ("sea", "wave", "soil"):
        for end in range(2, len(word) + 1):
            merges.append((word[: end - 1], word[end - 1]))
            vocab.setdefault(word[:end], len(vocab))
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>")


def save_model(folder: Path, objective: str, **changes: Any) -> Path:
    """A random model of two blocks with its tokenizer, as transformers saves them."""
    tokenizer = byte_tokenizer()
    common = {
        "vocab_size": len(tokenizer), "hidden_size": tiny.HIDDEN, "num_hidden_layers": tiny.LAYERS,
        "num_attention_heads": tiny.HEADS, "intermediate_size": tiny.FFN,
        "max_position_embeddings": 64, "pad_token_id": 0, **changes,
    }  # fmt: skip
    if objective == "causal_lm":
        config = LlamaConfig(num_key_value_heads=2, bos_token_id=None, eos_token_id=0, **common)
        model = AutoModelForCausalLM.from_config(config)
    else:
        plain = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        model = AutoModelForSequenceClassification.from_config(BertConfig(**common, **plain))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
