"""What a Whisper hears: logarithmic mel spectra, computed once when a run is described.

References:
    Radford et al. 2022, arXiv:2212.04356 (the features).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedConfig, WhisperFeatureExtractor

from autotune.core.errors import DataError, ModelError

from .audio import Recordings
from .sources import ModelSource, loadable, quiet

FRAMES_PER_POSITION = 2
"""Frames that become one position of the encoder: its second convolution takes every other one."""

_SETTINGS = "preprocessor_config.json"
_PROCESSOR = "processor_config.json"


def made_up_ear(bands: int, hop: int) -> WhisperFeatureExtractor:
    """Return the features of a model that an objective makes up.

    Args:
        bands: Mel bands.
        hop: Samples from one frame to the next, at 16,000 a second.
    """
    return WhisperFeatureExtractor(feature_size=bands, hop_length=hop)


def ear_of(source: ModelSource, config: PreTrainedConfig) -> WhisperFeatureExtractor:
    """Return the features that a model in a folder was made for.

    Raises:
        ModelError: If what the folder says of them does not go with the model.
    """
    folder = Path(source.folder or "")
    if not any((folder / name).is_file() for name in (_SETTINGS, _PROCESSOR)):
        return WhisperFeatureExtractor(feature_size=config.num_mel_bins)
    with quiet(), loadable(source):
        ear = WhisperFeatureExtractor.from_pretrained(folder, local_files_only=True)
    if ear.feature_size != config.num_mel_bins:
        raise ModelError(
            f"{source.name} takes {config.num_mel_bins} mel bands, but its {_SETTINGS} makes "
            f"{ear.feature_size}",
            where=source.folder,
            help=f"take {_SETTINGS} from the model that it was made from",
        )
    return ear


def positions_for(recordings: Recordings, ear: WhisperFeatureExtractor) -> int:
    """Return encoder positions that hold the longest recording whole: a multiple of 8.

    Raises:
        DataError: If a recording cannot be read.
    """
    longest = max(recordings.seconds(place) for place in range(len(recordings)))
    frames = longest * ear.sampling_rate / ear.hop_length
    return int(8 * np.ceil(max(1.0, frames) / (8 * FRAMES_PER_POSITION)))


def heard(
    recordings: Recordings, ear: WhisperFeatureExtractor, positions: int
) -> NDArray[np.float16]:
    """Return features of all recordings `(recordings, bands, frames)`, filled up with silence.

    They are kept in 16 bits: the third digit of a logarithm is below what a model can hear.

    Args:
        recordings: The recordings.
        ear: Computes the features.
        positions: Of the model's encoder.

    Raises:
        DataError: If a recording cannot be read, or is longer than what the model hears at once.
    """
    frames = FRAMES_PER_POSITION * positions
    most = frames * ear.hop_length
    made = np.empty((len(recordings), ear.feature_size, frames), np.float16)
    for place in range(len(recordings)):
        sound = recordings.sound(place, ear.sampling_rate)
        if len(sound) > most:
            raise DataError(
                f"this recording is {len(sound) / ear.sampling_rate:.2f} s long, but the model "
                f"hears {most / ear.sampling_rate:.2f} s at once",
                where=recordings.name(place),
                help="cut it into shorter ones, each with its own transcript",
            )
        features = ear(sound, sampling_rate=ear.sampling_rate, max_length=most)
        made[place] = features["input_features"][0]
    return made
