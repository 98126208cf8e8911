"""Transcripts as tokens, and how many of them a model that writes on its own gets wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from autotune.core.outcome import Score
from autotune.core.workload import Metric

from .cache import Array
from .encoder_decoder import ratio
from .logits import inner
from .sources import quiet

ERROR_RATE = Metric(name="error_rate", maximize=False)

PAD, START, END = 0, 1, 2
"""Tokens of a vocabulary of letters that are no letters."""

_FIRST_LETTER = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Spelled:
    """Transcripts as tokens.

    Attributes:
        ids: Tokens of all transcripts, one after the other, each with its end token `(tokens,)`.
        ends: Where each transcript ends `(transcripts,)`.
    """

    ids: Array
    ends: Array

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> Spelled:
        """Put transcripts one after the other."""
        return cls(
            ids=np.concatenate([np.asarray(row, np.int32) for row in rows]),
            ends=np.cumsum([len(row) for row in rows], dtype=np.int32),
        )


def letters_of(transcripts: Sequence[str]) -> str:
    """Return all letters that occur, in order."""
    return "".join(sorted({letter for transcript in transcripts for letter in transcript}))


def letters_vocabulary(letters: str) -> int:
    """Return the size of a vocabulary of letters."""
    return _FIRST_LETTER + len(letters)


def spell_letters(transcripts: Sequence[str], letters: str) -> Spelled:
    """Turn transcripts into letters, which are numbered in their order."""
    number = {letter: place for place, letter in enumerate(letters, start=_FIRST_LETTER)}
    return Spelled.of([[*(number[letter] for letter in text), END] for text in transcripts])


def starting_tokens(tokenizer: PreTrainedTokenizerBase, start: int) -> list[int]:
    """Return what the decoder starts with: the start token, and what names language and task.

    Args:
        tokenizer: Of the model, which puts that in front of a transcript.
        start: The start token.
    """
    bare, whole = (
        [int(token) for token in tokenizer("a", add_special_tokens=added)["input_ids"]]
        for added in (False, True)
    )
    leading = whole[: next((n for n in range(len(whole)) if whole[n:][: len(bare)] == bare), 0)]
    return leading if leading[:1] == [start] else [start, *leading]


def spell_tokens(
    transcripts: Sequence[str], tokenizer: PreTrainedTokenizerBase, end: int
) -> Spelled:
    """Turn transcripts into the tokenizer's tokens, without what the decoder starts with."""
    with quiet():
        encoded = tokenizer(list(transcripts), add_special_tokens=False)["input_ids"]
    return Spelled.of([[*row, end] for row in encoded])


def greedy(model: nn.Module, sounds: Tensor, prefix: Tensor, most: int) -> Tensor:
    """Let a model write on its own, the likeliest token each time.

    Args:
        model: A Whisper in evaluation mode.
        sounds: Features `(recordings, bands, frames)`.
        prefix: What each transcript starts with `(recordings, tokens)`.
        most: Tokens that are written; what stands after an end token means nothing.

    Returns:
        Tokens `(recordings, most)`.
    """
    heard = inner(model).get_encoder()(sounds)  # type: ignore[operator]  # a method of transformers
    given, cache = prefix, None
    written = []
    for _ in range(most):
        out: Any = model(
            encoder_outputs=heard, decoder_input_ids=given, past_key_values=cache, use_cache=True
        )
        given, cache = out.logits[:, -1].argmax(-1, keepdim=True), out.past_key_values
        written.append(given)
    return torch.cat(written, 1)


def edit_distance(written: Sequence[int], wanted: Sequence[int]) -> int:
    """Return how many tokens have to be put in, left out or changed to make one of the other.

    References:
        Levenshtein 1966, Binary codes capable of correcting deletions, insertions, and reversals.
    """
    above = list(range(len(wanted) + 1))
    for row, token in enumerate(written, start=1):
        here = [row]
        for place, right in enumerate(wanted, start=1):
            changed = above[place - 1] + (token != right)
            here.append(min(changed, above[place] + 1, here[-1] + 1))
        above = here
    return above[-1]


def error_rate(distances: Sequence[int], lengths: Sequence[int]) -> Score:
    """Return the edits that all transcripts need, per token of what was said.

    Args:
        distances: Edits that each transcript needs.
        lengths: Tokens of what was said in each recording.
    """
    parts, wholes = (np.asarray(values, np.float64) for values in (distances, lengths))
    value, spread = ratio(parts, np.maximum(wholes, 1.0))
    return Score(value=value, stderr=spread, n=len(distances))


def until(tokens: NDArray[np.int64], end: int) -> list[int]:
    """Return the tokens before the first end token."""
    found = np.flatnonzero(tokens == end)
    kept: list[int] = tokens[: found[0] if len(found) else len(tokens)].tolist()
    return kept
