"""Drawn digits: small images made by rule, so that an image classifier has something to learn.

Ten digits, each a drawing of seven rows of five points, are turned, stretched, moved, drawn with
more or less ink, and put under noise. Nothing is downloaded, and how hard they are to read is known
to come from these distortions and nothing else.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SIDE = 16
"""Pixels in each direction."""

_DRAWINGS = (
    " ### |#   #|##  #|# # #|#  ##|#   #| ### ",
    "  #  | ##  |  #  |  #  |  #  |  #  | ### ",
    " ### |#   #|    #|   # |  #  | #   |#####",
    " ### |#   #|    #|  ## |    #|#   #| ### ",
    "   # |  ## | # # |#  # |#####|   # |   # ",
    "#####|#    |#### |    #|    #|#   #| ### ",
    "  ## | #   |#    |#### |#   #|#   #| ### ",
    "#####|    #|   # |   # |  #  |  #  |  #  ",
    " ### |#   #|#   #| ### |#   #|#   #| ### ",
    " ### |#   #|#   #| ####|    #|   # | ##  ",
)
"""Rows of points, `#` where there is ink."""

_ROWS, _COLUMNS = 7, 5
_SEED = 0  # the same images for all runs: scores of runs with other seeds stay comparable
_AT_ONCE = 512


def drawn_digits(count: int) -> tuple[NDArray[np.uint8], list[str]]:
    """Return images `(count, SIDE, SIDE)` and the digit that each one shows.

    All digits occur equally often, or nearly so, in random order.
    """
    chance = np.random.default_rng(_SEED)
    digits = chance.permutation(np.arange(count) % len(_DRAWINGS))
    images = [
        _distorted(digits[start : start + _AT_ONCE], chance) for start in range(0, count, _AT_ONCE)
    ]
    return np.concatenate(images), [str(digit) for digit in digits]


def _distorted(digits: NDArray[np.int64], chance: np.random.Generator) -> NDArray[np.uint8]:
    """Draw digits, each with distortions of its own.

    Every pixel looks up where it lies in the drawing: in coordinates of the drawing's points, after
    undoing the move, the turn, the slant and the stretch.
    """
    points = [[[point == "#" for point in row] for row in d.split("|")] for d in _DRAWINGS]
    padded = np.pad(np.array(points, np.float32), ((0, 0), (1, 1), (1, 1)))
    count = len(digits)

    def drawn(low: float, high: float) -> NDArray[np.float64]:
        return chance.uniform(low, high, (count, 1, 1))

    angle, slant = drawn(-0.2, 0.2), drawn(-0.2, 0.2)
    points_per_row, points_per_column = drawn(0.5, 0.65), drawn(0.5, 0.65)
    down, across = drawn(-1.3, 1.3), drawn(-1.3, 1.3)
    rows, columns = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    y, x = rows[None] - down, columns[None] - across
    y, x = np.cos(angle) * y - np.sin(angle) * x, np.sin(angle) * y + np.cos(angle) * x
    y, x = y * points_per_row, (x + slant * y) * points_per_column
    ink = _between(padded, digits, y + (_ROWS + 1) / 2, x + (_COLUMNS + 1) / 2)
    images = drawn(0.6, 1.0) * ink + drawn(0.0, 0.3) + chance.normal(0.0, 0.15, ink.shape)
    return np.round(255 * np.clip(images, 0.0, 1.0)).astype(np.uint8)


def _between(
    drawings: NDArray[np.float32],
    digits: NDArray[np.int64],
    y: NDArray[np.float64],
    x: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return the drawings' values at points between their own, by bilinear interpolation."""
    y = np.clip(y, 0.0, drawings.shape[1] - 1.001)
    x = np.clip(x, 0.0, drawings.shape[2] - 1.001)
    top, left = y.astype(np.int64), x.astype(np.int64)
    lower, right = y - top, x - left
    which = digits[:, None, None]
    upper_row = (1 - right) * drawings[which, top, left] + right * drawings[which, top, left + 1]
    lower_row = (1 - right) * drawings[which, top + 1, left] + right * (
        drawings[which, top + 1, left + 1]
    )
    value: NDArray[np.float64] = (1 - lower) * upper_row + lower * lower_row
    return value
