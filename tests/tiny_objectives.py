"""Tiny models and data of one's own for the objectives that do more than read text."""

from __future__ import annotations

import json
import wave
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from autotune.objectives.numbers import in_words
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSeq2SeqLM,
    AutoModelForSpeechSeq2Seq,
    BartConfig,
    PreTrainedConfig,
    T5Config,
    ViTConfig,
    WhisperConfig,
)

from tests import tiny_folders
from tests import tiny_models as tiny

SIDE, PATCH = 16, 8
BANDS, POSITIONS = 8, 8
RATE = 8000
_TWO_SIDES = {
    "d_model": tiny.HIDDEN, "encoder_layers": tiny.LAYERS, "decoder_layers": tiny.LAYERS,
    "encoder_attention_heads": tiny.HEADS, "decoder_attention_heads": tiny.HEADS,
    "encoder_ffn_dim": tiny.FFN, "decoder_ffn_dim": tiny.FFN, "dropout": 0.0,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 0, "decoder_start_token_id": 1,
}  # fmt: skip


def t5(**changes: Any) -> T5Config:
    """A T5 of two and two layers."""
    usual: dict[str, Any] = {
        "vocab_size": len(tiny_folders.byte_tokenizer()), "d_model": tiny.HIDDEN, "d_kv": 8,
        "d_ff": tiny.FFN, "num_layers": tiny.LAYERS, "num_decoder_layers": tiny.LAYERS,
        "num_heads": tiny.HEADS, "dropout_rate": 0.0, "pad_token_id": 0, "eos_token_id": 0,
        "decoder_start_token_id": 0,
    }  # fmt: skip
    return T5Config(**{**usual, **changes})


def bart(**changes: Any) -> BartConfig:
    """A BART of two and two layers."""
    vocab = len(tiny_folders.byte_tokenizer())
    usual = {**_TWO_SIDES, "vocab_size": vocab, "max_position_embeddings": 64}
    return BartConfig(**{**usual, "forced_eos_token_id": None, **changes})


def vit(**changes: Any) -> ViTConfig:
    """A vision transformer of two layers that reads four patches."""
    usual: dict[str, Any] = {
        "hidden_size": tiny.HIDDEN, "num_hidden_layers": tiny.LAYERS, "num_channels": 3,
        "num_attention_heads": tiny.HEADS, "intermediate_size": tiny.FFN, "image_size": SIDE,
        "patch_size": PATCH,
    }  # fmt: skip
    return ViTConfig(**{**usual, **changes})


def whisper(**changes: Any) -> WhisperConfig:
    """A Whisper of two and two layers that hears 0.16 seconds."""
    vocab = len(tiny_folders.byte_tokenizer())
    usual = {**_TWO_SIDES, "vocab_size": vocab, "num_mel_bins": BANDS, "max_target_positions": 16}
    more = {"max_source_positions": POSITIONS, "suppress_tokens": None}
    return WhisperConfig(**{**usual, **more, "begin_suppress_tokens": None, **changes})


def save(folder: Path, kind: Any, config: PreTrainedConfig, *, tokenizer: bool = True) -> Path:
    """A random model as transformers saves it."""
    kind.from_config(config).save_pretrained(folder)
    if tokenizer:
        tiny_folders.byte_tokenizer().save_pretrained(folder)
    return folder


def write_pairs(path: Path, count: int = 80) -> Path:
    """JSON lines of numbers in words and in digits."""
    rows = [{"source": in_words(7 * n), "target": str(7 * n)} for n in range(count)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def write_arrays(path: Path, count: int = 80, shape: tuple[int, ...] = (SIDE, SIDE)) -> Path:
    """Images of two classes, which differ in brightness."""
    chance = np.random.default_rng(0)
    labels = np.arange(count) % 2
    images = chance.integers(0, 128, (count, *shape), np.uint8)
    images += (64 * labels).astype(np.uint8).reshape(-1, *(1 for _ in shape))
    np.savez(path, images=images, labels=np.array(["dark", "bright"])[labels])
    return path


def write_wav(path: Path, seconds: float, hertz: float, *, rate: int = RATE, channels: int = 1,
              width: int = 2) -> Path:  # fmt: skip
    """A sine, as loud as half of what is possible."""
    time = np.arange(round(seconds * rate)) / rate
    samples = np.round(0.5 * 2 ** (8 * width - 1) * np.sin(2 * np.pi * hertz * time))
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        kind = {1: "u1", 2: "<i2", 4: "<i4"}[width]
        frames = np.repeat((samples + (128 if width == 1 else 0)).astype(kind), channels)
        file.writeframes(frames.tobytes())
    return path


def write_recordings(folder: Path, count: int = 80) -> Path:
    """WAV files of one tone each, and a table with the name of the tone."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["file,transcript"]
    for place in range(count):
        name = ("sea", "field", "soil")[place % 3]
        hertz = 300 + 400 * (place % 3) + place
        write_wav(folder / f"{place}.wav", 0.08 + 0.001 * (place % 40), hertz)
        lines.append(f"{place}.wav,{name} {place}")
    (folder / "transcripts.csv").write_text("\n".join(lines))
    return folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What an objective is tried with.

    Attributes:
        kind: Class that builds its models.
        config: Makes the configuration of a tiny one.
        data: Writes data under a path.
        inputs: Main input of its models.
        tokenizer: Whether its models have one.
        length: Sequence length.
    """

    kind: Any
    config: Callable[..., PreTrainedConfig]
    data: Callable[[Path], Path]
    inputs: str
    tokenizer: bool
    length: int

    def save_model(self, folder: Path, **changes: Any) -> Path:
        """A random model in a folder."""
        return save(folder, self.kind, self.config(**changes), tokenizer=self.tokenizer)


CASES = {
    "image_classification": Case(
        kind=AutoModelForImageClassification,
        config=vit,
        data=lambda folder: write_arrays(folder / "images.npz"),
        inputs="pixel_values",
        tokenizer=False,
        length=(SIDE // PATCH) ** 2,
    ),
    "seq2seq": Case(
        kind=AutoModelForSeq2SeqLM,
        config=t5,
        data=lambda folder: write_pairs(folder / "pairs.jsonl"),
        inputs="input_ids",
        tokenizer=True,
        length=16,
    ),
    "speech_recognition": Case(
        kind=AutoModelForSpeechSeq2Seq,
        config=whisper,
        data=lambda folder: write_recordings(folder / "recordings"),
        inputs="input_features",
        tokenizer=True,
        length=POSITIONS,
    ),
}
