"""Token sequences of different lengths in one array, and rectangles cut from them.

Every batch has the full sequence length, padded or shortened, so that all batches need the same
memory and the first ones show the peak.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from .cache import Array
from .sources import quiet


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Token sequences, one after the other.

    Attributes:
        ids: Tokens of all sequences `(tokens,)`.
        ends: Where each sequence ends `(sequences,)`.
        pad: Token to fill up with.
        closing: Token that ends every sequence, also a shortened one; None if there is none.
    """

    ids: Array
    ends: Array
    pad: int
    closing: int | None = None

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each sequence `(sequences,)`."""
        return np.diff(self.ends, prepend=0).astype(np.int64)

    def padded(
        self, places: Sequence[int] | NDArray[np.int64], length: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return sequences as a rectangle, padded on the right.

        Args:
            places: Which sequences.
            length: Tokens of each.

        Returns:
            Tokens and mask, 1 where a token is not padding; both `(places, length)`.
        """
        tokens = np.full((len(places), length), self.pad, np.int64)
        mask = np.zeros((len(places), length), np.int64)
        for row, place in enumerate(places):
            start = int(self.ends[place - 1]) if place else 0
            end = int(self.ends[place])
            kept = min(end - start, length)
            tokens[row, :kept] = self.ids[start : start + kept]
            mask[row, :kept] = 1
            if kept < end - start and self.closing is not None:
                tokens[row, kept - 1] = self.closing
        return tokens, mask


def encode(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, most: int, pad: int
) -> tuple[Array, Array]:
    """Turn texts into the `ids` and `ends` of `Rows`.

    Args:
        texts: The texts.
        tokenizer: Of the model.
        most: Tokens of a text, at most; what is beyond is cut off.
        pad: What a text without any token becomes.
    """
    with quiet():
        encoded = tokenizer(list(texts), truncation=True, max_length=most)["input_ids"]
    rows = [np.asarray(row if len(row) else [pad], np.int32) for row in encoded]
    return np.concatenate(rows), np.cumsum([len(row) for row in rows], dtype=np.int32)


def padding_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token to pad with; models without one never look at padding, so any will do."""
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    return next((int(token) for token in known if isinstance(token, int)), 0)


def closing_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the token that the tokenizer puts after every text, such as BERT's `[SEP]`."""
    last = int(tokenizer("a")["input_ids"][-1])
    return last if last in tokenizer.all_special_ids else None


def usual_length(ends: Array, most: int) -> int:
    """Return a sequence length that holds 95 of 100 texts whole: a multiple of 8, up to `most`."""
    lengths = np.diff(ends, prepend=0)
    return int(min(most, max(8, 8 * np.ceil(np.quantile(lengths, 0.95) / 8))))
