"""Dialled numbers as sound: what a speech model can learn to write down in seconds.

Every key of a telephone sounds two sines at once, one for its row and one for its column; a number
is a sequence of them. Lengths of tones and pauses, loudness, tuning and noise vary. Nothing is
downloaded, and the transcript is known without a doubt.

References:
    ITU-T Recommendation Q.23, 1988 (the frequencies).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE = 16_000
SECONDS = 0.96
"""Length that every recording fits into."""

KEYS = ("123", "456", "789", "*0#")

_ROWS = (697.0, 770.0, 852.0, 941.0)
_COLUMNS = (1209.0, 1336.0, 1477.0)
_FEWEST, _MOST = 3, 6
_TONE = (0.08, 0.1)
_PAUSE = (0.03, 0.05)
_FADE = 0.005
_SEED = 0  # the same recordings for all runs: scores of runs with other seeds stay comparable


def dialled_numbers(count: int) -> tuple[list[NDArray[np.float32]], list[str]]:
    """Return recordings at `SAMPLE_RATE`, each a number of 3 to 6 digits, and the numbers.

    No number occurs twice.
    """
    chance = np.random.default_rng(_SEED)
    numbers: dict[str, None] = {}
    while len(numbers) < count:
        length = int(chance.integers(_FEWEST, _MOST + 1))
        numbers.setdefault("".join(str(digit) for digit in chance.integers(0, 10, length)))
    return [_recording(number, chance) for number in numbers], list(numbers)


def _recording(number: str, chance: np.random.Generator) -> NDArray[np.float32]:
    """Sound the keys of a number one after the other, under noise."""
    pieces = [_silence(chance)]
    for key in number:
        pieces += [_tone(key, chance), _silence(chance)]
    clean = np.concatenate(pieces)
    noise = chance.uniform(0.01, 0.4) * chance.standard_normal(len(clean))
    sound = chance.uniform(0.1, 0.5) * (clean + noise)
    return np.clip(sound, -1.0, 1.0).astype(np.float32)


def _tone(key: str, chance: np.random.Generator) -> NDArray[np.float64]:
    row = next(place for place, keys in enumerate(KEYS) if key in keys)
    pair = (_ROWS[row], _COLUMNS[KEYS[row].index(key)])
    time = np.arange(round(chance.uniform(*_TONE) * SAMPLE_RATE)) / SAMPLE_RATE
    fade = np.minimum(1.0, np.minimum(time, time[::-1]) / _FADE)
    tuning = chance.uniform(0.985, 1.015)
    sines = [
        chance.uniform(0.5, 1.0) * np.sin(2 * np.pi * (tuning * hertz * time + chance.uniform()))
        for hertz in pair
    ]
    sound: NDArray[np.float64] = fade * (sines[0] + sines[1]) / 2
    return sound


def _silence(chance: np.random.Generator) -> NDArray[np.float64]:
    return np.zeros(round(chance.uniform(*_PAUSE) * SAMPLE_RATE))
