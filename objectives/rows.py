"""Token sequences of different lengths, and rectangles cut from them.

By default every batch has the full sequence length, padded or shortened, so that all batches need
the same memory and the first ones show the peak. Batches by length are as wide as their longest
sequence; there, the first ones are those of the longest sequences.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from autotune.knobs.stages import DataPlan
from autotune.trial.training import PROBE_STEPS

from .cache import Array
from .sources import quiet

Places = Sequence[int] | NDArray[np.int64]

WIDTHS = 8
"""Batches by length are a multiple of this wide."""


class Rectangles(Protocol):
    """Token sequences that can be had as rectangles."""

    def padded(self, places: Places, length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return sequences as a rectangle, padded on the right.

        Args:
            places: Which sequences.
            length: Tokens of each.

        Returns:
            Tokens and mask, 1 where a token is not padding; both `(places, length)`.
        """


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
        return lengths_of(self.ends)

    def padded(self, places: Places, length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return sequences as a rectangle, padded on the right; see `Rectangles`."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class FreshRows:
    """The same sequences, made from their texts every time that they are asked for.

    Attributes:
        texts: The texts.
        tokenizer: Of the model.
        most: Tokens of a text, at most; what is beyond is cut off.
        pad: As in `Rows`.
        closing: As in `Rows`.
    """

    texts: Sequence[str]
    tokenizer: PreTrainedTokenizerBase
    most: int
    pad: int
    closing: int | None = None

    def padded(self, places: Places, length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return sequences as a rectangle, padded on the right; see `Rectangles`."""
        some = [self.texts[int(place)] for place in places]
        ids, ends = encode(some, self.tokenizer, self.most, self.pad)
        rows = Rows(ids=ids, ends=ends, pad=self.pad, closing=self.closing)
        return rows.padded(range(len(some)), length)


def by_length(
    lengths: NDArray[np.int64], plan: DataPlan, seed: int
) -> Iterator[tuple[NDArray[np.int64], int]]:
    """Yield places of sequences of similar length, a global batch at a time, without end.

    In each pass over the data, sequences are sorted by length, cut into batches, and the batches
    shuffled; what is too little for a batch goes into the next pass. The batches that peaks are
    measured on come first: they are those of the longest sequences and all as wide as the widest.

    Args:
        lengths: Tokens of each sequence `(sequences,)`.
        plan: Batch size, and the longest that a sequence may be.
        seed: Of the order, which nothing else decides.

    Yields:
        Places, and the width of their batch: a multiple of 8, or the sequence length.
    """
    rng = np.random.default_rng(seed)
    widest = _width(int(lengths.max()), plan.sequence_length)
    left: NDArray[np.int64] = np.empty(0, np.int64)
    made = 0
    while True:
        queue = np.concatenate([left, rng.permutation(len(lengths))])
        whole = len(queue) // plan.global_batch * plan.global_batch
        queue, left = queue[:whole], queue[whole:]
        # The order within a length stays the random one, since the sort is stable.
        queue = queue[np.argsort(-lengths[queue], kind="stable")]
        batches = queue.reshape(-1, plan.global_batch)
        first = min(max(0, PROBE_STEPS - made), len(batches))
        for place in (*range(first), *(first + rng.permutation(len(batches) - first))):
            measured = made < PROBE_STEPS
            longest = int(lengths[batches[place]].max())
            yield batches[place], widest if measured else _width(longest, plan.sequence_length)
            made += 1


def lengths_of(ends: Array) -> NDArray[np.int64]:
    """Return the tokens of each sequence `(sequences,)` from where they end."""
    return np.diff(ends, prepend=0).astype(np.int64)


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


def _width(longest: int, most: int) -> int:
    return min(most, -(-longest // WIDTHS) * WIDTHS)
