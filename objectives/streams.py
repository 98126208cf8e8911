"""Texts as one stream of tokens, cut into blocks: every token counts once, and none is padding.

A block of `n` tokens is an input of `n` and the `n` tokens that follow each of them, so that
neighbouring blocks share one token. All blocks weigh the same, and so do all micro-batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from .cache import Array
from .columns import held_out
from .sources import quiet

HELD_OUT_SHARE = 0.1
MANY = 20
"""From this many documents on, whole ones are held out; else the end of the text is."""


def split_documents(documents: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return documents to train on and documents to evaluate on.

    Of many, a tenth is held out at random, the same way always; of few, the last tenth of their
    text, from a line's beginning on.
    """
    if len(documents) >= MANY:
        kept, held = held_out(len(documents), HELD_OUT_SHARE)
        return [documents[place] for place in sorted(kept)], [documents[place] for place in held]
    text = "\n\n".join(documents)
    cut = int((1 - HELD_OUT_SHARE) * len(text))
    cut = text.find("\n", cut) + 1 or cut
    return [text[:cut]], [text[cut:]]


def encode_stream(documents: Sequence[str], tokenizer: PreTrainedTokenizerBase | None) -> Array:
    """Return the tokens of all documents `(tokens,)`, each followed by the end-of-text token.

    Args:
        documents: The texts.
        tokenizer: Of the model; None takes UTF-8 bytes as tokens, with nothing between documents.
    """
    if tokenizer is None:
        content = "\n\n".join(documents).encode()
        return np.frombuffer(content, np.uint8).astype(np.int32)
    end = tokenizer.eos_token_id
    with quiet():
        encoded = tokenizer(list(documents), add_special_tokens=False)["input_ids"]
    rows = [np.asarray([*row, end] if isinstance(end, int) else row, np.int32) for row in encoded]
    return np.concatenate(rows)


def token_bytes(
    documents: Sequence[str], tokenizer: PreTrainedTokenizerBase | None
) -> Array | None:
    """Return how many UTF-8 bytes of the text each token of `encode_stream` stands for.

    They make losses of different tokenizers comparable. What a tokenizer drops between two tokens
    counts with the second of them; the end-of-text token stands for none.

    Returns:
        Bytes `(tokens,)`, or None if the tokenizer does not tell where its tokens are.
    """
    if tokenizer is None:
        return np.ones(len("\n\n".join(documents).encode()), np.int32)
    if not tokenizer.is_fast:
        return None
    with quiet():
        encoded: Any = tokenizer(
            list(documents), add_special_tokens=False, return_offsets_mapping=True
        )
    ended = isinstance(tokenizer.eos_token_id, int)
    rows = []
    for text, spans in zip(documents, encoded["offset_mapping"], strict=True):
        codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        sizes = 1 + (codes >= 0x80).astype(np.int32) + (codes >= 0x800) + (codes >= 0x10000)
        before = np.concatenate([[0], np.cumsum(sizes)])
        ends = np.array([end for _, end in spans], np.int64)
        if len(ends):
            ends[-1] = len(codes)
        rows.append(np.diff(np.maximum.accumulate(before[ends]), prepend=0).astype(np.int32))
        if ended:
            rows.append(np.zeros(1, np.int32))
    return np.concatenate(rows)


def count_blocks(stream: Array, length: int) -> int:
    """Return how many blocks of `length` tokens there are, each with the token after it."""
    return max(0, (len(stream) - 1) // length)


def blocks(
    stream: Array, places: Sequence[int] | NDArray[np.int64], length: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Cut blocks out of a stream.

    Args:
        stream: Tokens.
        places: Which blocks.
        length: Tokens of each.

    Returns:
        Inputs and the token that follows each input; both `(places, length)`.
    """
    at = np.asarray(places, np.int64)[:, None] * length + np.arange(length + 1)[None, :]
    cut = stream[at].astype(np.int64)
    return cut[:, :-1].copy(), cut[:, 1:].copy()
