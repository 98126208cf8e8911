"""Models that hear: the user's own Whisper or a small one, what they hear, and how they spell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedConfig, WhisperConfig, WhisperFeatureExtractor

from autotune.core.errors import ModelError

from .audio import Recordings
from .hearing import ear_of, made_up_ear, positions_for
from .sources import ModelSource
from .transcripts import (
    END,
    PAD,
    START,
    Spelled,
    letters_of,
    letters_vocabulary,
    spell_letters,
    spell_tokens,
    starting_tokens,
)

MOST_TOKENS = 128
"""Of a transcript, at most; longer ones are trained on up to there."""

_BANDS, _HOP = 80, 320
_MOST_POSITIONS = 750
"""Of a model that is made up: 30 s, as with the Whispers that were published."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """A model, what it hears, and how it spells.

    Attributes:
        source: Where it comes from.
        ear: Computes its features.
        facts: What a trial needs to know of it again, as a JSON object.
        train: Transcripts to train on, as its tokens.
        held: Transcripts to evaluate on.
    """

    source: ModelSource
    ear: WhisperFeatureExtractor
    facts: Mapping[str, Any]
    train: Spelled
    held: Spelled


def made_up_listener(train: Recordings, held: Recordings) -> Listener:
    """Return a small model that spells in letters, and hears as long as the longest recording.

    Args:
        train: Recordings to train on.
        held: Recordings to evaluate on.

    Raises:
        DataError: If a recording cannot be read.
    """
    parts = (train, held)
    letters = letters_of([*train.transcripts, *held.transcripts])
    ear = made_up_ear(_BANDS, _HOP)
    source = ModelSource(name="Whisper 2+2x96")
    spelled = [spell_letters(part.transcripts, letters) for part in parts]
    longest = max(int(np.diff(part.ends, prepend=0).max()) for part in spelled)
    made = {
        "vocab": letters_vocabulary(letters),
        "positions": min(max(positions_for(part, ear) for part in parts), _MOST_POSITIONS),
        "targets": min(longest, MOST_TOKENS),
    }
    return Listener(
        source=source,
        ear=ear,
        facts={"source": asdict(source), "made": made, "prefix": [START], "end": END, "pad": PAD},
        train=spelled[0],
        held=spelled[1],
    )


def listener_in(source: ModelSource, train: Recordings, held: Recordings) -> Listener:
    """Return the user's own model.

    Args:
        source: Where it is.
        train: Recordings to train on.
        held: Recordings to evaluate on.

    Raises:
        ModelError: If it is no Whisper, or lacks its tokenizer.
    """
    config = source.config()
    _check_family(config, source)
    tokenizer = source.tokenizer()
    start = getattr(config, "decoder_start_token_id", None)
    end, pad = tokenizer.eos_token_id, config.pad_token_id
    if not isinstance(end, int) or not isinstance(start, int):
        raise ModelError(
            f"{source.name} does not say with which token a transcript starts and ends",
            where=source.folder,
            help="its config.json has decoder_start_token_id, its tokenizer eos_token",
        )
    return Listener(
        source=source,
        ear=ear_of(source, config),
        facts={
            "source": asdict(source),
            "made": {},
            "prefix": starting_tokens(tokenizer, start),
            "end": end,
            "pad": end if pad is None else pad,
        },
        train=spell_tokens(train.transcripts, tokenizer, end),
        held=spell_tokens(held.transcripts, tokenizer, end),
    )


def small_whisper(vocab: int, positions: int, targets: int) -> WhisperConfig:
    """Return a Whisper of 2 and 2 layers and width 96, without dropout.

    Its weights start larger than usual: a narrow model finds where in a recording to look only
    then, within a training of seconds.

    Args:
        vocab: Tokens that it can write.
        positions: Of the encoder.
        targets: Of the decoder.
    """
    return WhisperConfig(
        vocab_size=vocab,
        num_mel_bins=_BANDS,
        d_model=96,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=192,
        decoder_ffn_dim=192,
        max_source_positions=positions,
        max_target_positions=targets,
        init_std=0.12,
        pad_token_id=PAD,
        bos_token_id=START,
        eos_token_id=END,
        decoder_start_token_id=START,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )


def _check_family(config: PreTrainedConfig, source: ModelSource) -> None:
    if config.model_type != "whisper":
        raise ModelError(
            f"{source.name} is of the family '{config.model_type}', which is no Whisper",
            where=source.folder,
            help="give a Whisper with --model, such as openai/whisper-tiny",
        )
