"""The user's own recordings: WAV files, with a table that has the transcript of each.

Files are read with Python's own `wave`, one at a time. Whatever their sample rate, they are brought
to that of the model.
"""

from __future__ import annotations

import wave
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autotune.core.errors import DataError

from .columns import held_out
from .files import Splits, Table
from .limits import held_apart
from .pairs import column, spelled

FILE_NAMES = ("file", "file_name", "filename", "path", "audio", "wav", "recording")
TRANSCRIPT_NAMES = ("transcript", "transcription", "text", "sentence")

Sound = NDArray[np.float32]
"""Samples from -1 to 1 `(samples,)`."""

_PCM_BYTES = 2
_CONVERT = "convert it: ffmpeg -i FILE -c:a pcm_s16le NEW.wav"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recordings:
    """Recordings with a transcript each: files that are read when they are needed, or samples.

    Attributes:
        transcripts: What is said.
        paths: Files, one for each transcript; empty for samples.
        sounds: Samples, one array for each transcript; empty for files.
        rate: Samples per second of `sounds`.
    """

    transcripts: Sequence[str]
    paths: Sequence[Path] = ()
    sounds: Sequence[Sound] = field(default=(), repr=False)
    rate: int = 0

    def __len__(self) -> int:
        return len(self.transcripts)

    def pick(self, places: Sequence[int]) -> Recordings:
        """Return the recordings at these places, in their order."""
        return Recordings(
            transcripts=[self.transcripts[place] for place in places],
            paths=[self.paths[place] for place in places] if self.paths else (),
            sounds=[self.sounds[place] for place in places] if self.sounds else (),
            rate=self.rate,
        )

    def seconds(self, place: int) -> float:
        """Return how long a recording is.

        Raises:
            DataError: If its file is not there or cannot be read.
        """
        samples, rate = (
            (self.sounds[place], self.rate) if self.sounds else read_wav(self.paths[place])
        )
        return len(samples) / rate

    def name(self, place: int) -> str:
        """Return how messages call a recording."""
        return str(self.paths[place]) if self.paths else f"recording {place + 1}"

    def sound(self, place: int, rate: int) -> Sound:
        """Return a recording at a sample rate.

        Raises:
            DataError: If its file is not there or cannot be read.
        """
        if self.sounds:
            return resampled(self.sounds[place], self.rate, rate)
        return resampled(*read_wav(self.paths[place]), rate)


def split_recordings(splits: Splits, text: str | None) -> tuple[Recordings, Recordings]:
    """Return what to train on and what to evaluate on, in random but fixed order.

    Args:
        splits: Tables of files and transcripts; files are looked for beside their table.
        text: Column of the transcript, or None to choose one of `TRANSCRIPT_NAMES`.

    Raises:
        DataError: If a column is missing, or a file is.
    """
    train = _recordings(splits.train, text)
    if splits.validation is None:
        training, held = held_apart(len(train), "recordings", splits.train.where)
        return train.pick(training), train.pick(held)
    validation = _recordings(splits.validation, text)
    later, first = held_out(len(validation))
    return train, validation.pick(first + later)


def read_wav(path: Path) -> tuple[Sound, int]:
    """Read a WAV file of 16-bit samples; channels are averaged.

    Returns:
        Samples `(samples,)` and the sample rate.

    Raises:
        DataError: If it is something else.
    """
    try:
        with wave.open(str(path), "rb") as file:
            width, channels, rate = file.getsampwidth(), file.getnchannels(), file.getframerate()
            content = file.readframes(file.getnframes())
    except (wave.Error, EOFError, OSError) as error:
        reason = str(error) or "it ends too early"
        raise DataError(
            f"this is no WAV file that can be read: {reason}", where=str(path), help=_CONVERT
        ) from error
    if width != _PCM_BYTES:
        raise DataError(
            f"its samples have {8 * width} bits, but only 16 can be read",
            where=str(path),
            help=_CONVERT,
        )
    whole = len(content) // (width * channels) * width * channels
    samples = np.frombuffer(content[:whole], "<i2").reshape(-1, channels)
    if not len(samples):
        raise DataError("there is no sound in it", where=str(path))
    return (samples.mean(1) / 2**15).astype(np.float32), rate


def resampled(sound: Sound, rate: int, wanted: int) -> Sound:
    """Return samples at another rate, by cutting or extending their spectrum.

    What is above half the lower of the two rates is lost.

    Args:
        sound: Samples `(samples,)`.
        rate: Samples per second.
        wanted: Samples per second of what is returned.
    """
    if rate == wanted:
        return sound
    count = max(1, round(len(sound) * wanted / rate))
    spectrum = np.fft.rfft(sound)
    made: Sound = np.fft.irfft(spectrum[: count // 2 + 1], count).astype(np.float32)
    return made * np.float32(count / len(sound))


def _recordings(table: Table, text: str | None) -> Recordings:
    files = column(table, None, FILE_NAMES, "recording", "a header line")
    transcripts = column(table, text, TRANSCRIPT_NAMES, "transcript", "--text-column")
    where = Path(table.where)
    folder = where if where.is_dir() else where.parent
    names = spelled(table, files, "a header line")
    paths = [folder / name for name in names]
    for row, path in enumerate(paths, start=1):
        if not path.is_file():
            raise DataError(
                f"there is no file '{names[row - 1]}', which row {row} has the transcript of",
                where=table.where,
                help=f"files are looked for in {folder}",
            )
    return Recordings(paths=paths, transcripts=spelled(table, transcripts, "--text-column"))
