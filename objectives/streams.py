"""Texts as one stream of tokens, cut into rows.

By default rows are blocks: every token counts once, and none is padding. A block of `n` tokens is
an input of `n` and the `n` tokens that follow each of them, so that neighbouring blocks share one
token. All blocks weigh the same, and so do all micro-batches.

Rows of documents end where a document ends, and are filled up: no token sees another document.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from autotune.core.errors import DataError
from autotune.knobs.chunked_loss import IGNORED

from .cache import Array
from .columns import held_out
from .sources import quiet

BETWEEN = "\n\n"
"""What stands between documents of a stream of bytes."""

HELD_OUT_SHARE = 0.1
MANY = 20
"""From this many documents on, whole ones are held out; else the end of the text is."""


class Tokens(Protocol):
    """A stream of tokens that can be cut."""

    def __len__(self) -> int: ...
    def __getitem__(self, span: slice, /) -> Array: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FreshTokens:
    """The stream of `encode_stream`, made from the documents every time that a part is asked for.

    Attributes:
        documents: The texts.
        ends: Where each of them ends in the stream `(documents,)`.
        tokenizer: Of the model.
    """

    documents: Sequence[str]
    ends: Array
    tokenizer: PreTrainedTokenizerBase

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, span: slice, /) -> Array:
        start, stop, _ = span.indices(len(self))
        first = int(np.searchsorted(self.ends, start, side="right"))
        last = int(np.searchsorted(self.ends, stop, side="left"))
        some = self.documents[first : last + 1]
        begins = int(self.ends[first - 1]) if first else 0
        return encode_stream(some, self.tokenizer)[start - begins : stop - begins]


def split_documents(documents: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return documents to train on and documents to evaluate on.

    Of many, a tenth is held out at random, the same way always; of few, the end is: see
    `split_end`.
    """
    if len(documents) < MANY:
        return split_end(documents)
    kept, held = held_out(len(documents), HELD_OUT_SHARE)
    return [documents[place] for place in sorted(kept)], [documents[place] for place in held]


def split_end(documents: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return documents without the last tenth of their text, and that, from a line's beginning on.

    One of the documents may be cut in two.
    """
    text = BETWEEN.join(documents)
    cut = int((1 - HELD_OUT_SHARE) * len(text))
    cut = text.find("\n", cut) + 1 or cut
    kept, held, begins = [], [], 0
    for document in documents:
        inside = min(max(cut - begins, 0), len(document))
        kept.append(document[:inside])
        held.append(document[inside:])
        begins += len(document) + len(BETWEEN)
    return [part for part in kept if part] or [""], [part for part in held if part] or [""]


def encode_stream(documents: Sequence[str], tokenizer: PreTrainedTokenizerBase | None) -> Array:
    """Return the tokens of all documents `(tokens,)`; see `encode_documents`."""
    return encode_documents(documents, tokenizer)[0]


def encode_documents(
    documents: Sequence[str], tokenizer: PreTrainedTokenizerBase | None
) -> tuple[Array, Array]:
    """Turn documents into one stream of tokens, each document followed by the end-of-text token.

    Args:
        documents: The texts.
        tokenizer: Of the model; None takes UTF-8 bytes as tokens, with an empty line between
            documents.

    Returns:
        The tokens `(tokens,)`, and where each document ends, with what follows it `(documents,)`.
    """
    if tokenizer is None:
        stream = np.frombuffer(BETWEEN.join(documents).encode(), np.uint8).astype(np.int32)
        sizes = [len(document.encode()) + len(BETWEEN) for document in documents]
        return stream, np.minimum(np.cumsum(sizes, dtype=np.int64), len(stream))
    end = tokenizer.eos_token_id
    with quiet():
        encoded = tokenizer(list(documents), add_special_tokens=False)["input_ids"]
    rows = [np.asarray([*row, end] if isinstance(end, int) else row, np.int32) for row in encoded]
    return np.concatenate(rows), np.cumsum([len(row) for row in rows], dtype=np.int64)


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
        return np.ones(len(BETWEEN.join(documents).encode()), np.int32)
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


def count_blocks(stream: Tokens, length: int) -> int:
    """Return how many blocks of `length` tokens there are, each with the token after it."""
    return max(0, (len(stream) - 1) // length)


def blocks(
    stream: Tokens, places: Sequence[int] | NDArray[np.int64], length: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Cut blocks out of a stream.

    Args:
        stream: Tokens.
        places: Which blocks.
        length: Tokens of each.

    Returns:
        Inputs and the token that follows each input; both `(places, length)`.
    """
    starts = [int(place) * length for place in places]
    cut = np.stack([stream[start : start + length + 1] for start in starts]).astype(np.int64)
    return cut[:, :-1].copy(), cut[:, 1:].copy()


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentRows:
    """Rows that each hold tokens of one document.

    Attributes:
        starts: Where in the stream each row starts `(rows,)`.
        stops: Where the last label of each row ends `(rows,)`.
        length: Tokens of a row.
    """

    starts: NDArray[np.int64]
    stops: NDArray[np.int64]
    length: int

    @classmethod
    def of(cls, ends: Array, length: int) -> DocumentRows:
        """Cut documents into as few rows as possible.

        Args:
            ends: Where each document ends in its stream `(documents,)`.
            length: Tokens of a row.

        Raises:
            DataError: If no document has a token that follows another.
        """
        spans = [
            (at, min(at + length + 1, end))
            for begin, end in pairwise([0, *ends.tolist()])
            for at in range(begin, end - 1, length)
        ]
        if not spans:
            raise DataError(
                "no document has two tokens, so there is none to predict from another",
                help="set data.packing to stream",
            )
        starts, stops = np.array(spans, np.int64).T
        return cls(starts=starts, stops=stops, length=length)

    def __len__(self) -> int:
        return len(self.starts)

    def padded(
        self, stream: Tokens, places: Sequence[int] | NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Cut rows out of a stream.

        What fills up a row stands behind its tokens, which do not look that far, so no mask is
        needed; its labels do not count.

        Args:
            stream: Tokens.
            places: Which rows.

        Returns:
            Inputs and the token that follows each input; both `(places, length)`.
        """
        inputs = np.zeros((len(places), self.length), np.int64)
        labels = np.full((len(places), self.length), IGNORED, np.int64)
        for row, place in enumerate(places):
            cut = stream[int(self.starts[place]) : int(self.stops[place])]
            inputs[row, : len(cut) - 1] = cut[:-1]
            labels[row, : len(cut) - 1] = cut[1:]
        return inputs, labels
