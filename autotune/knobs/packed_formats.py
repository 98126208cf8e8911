"""How a matrix becomes codes of a few bits, and comes back: the grids of packed weights.

Three formats share one packing. `integer`: codes on an even grid between the least and the greatest
weight of a group, with scale and zero point in fp16. `nf4`: 16 levels at quantiles of the normal
distribution, as weights are distributed, times the greatest magnitude of a group in fp16. `float8`:
e4m3, times a scale in fp32 for each output. Plain torch operations, alike on CPU and CUDA.

References:
    Dettmers et al. 2023, arXiv:2305.14314 (the 4-bit normal float);
    Micikevicius et al. 2022, arXiv:2209.05433 (e4m3).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn import functional

from autotune.core.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

WIDTHS = (2, 3, 4, 5, 6, 8)
GROUP = 64
_PER_WORD = 8
_LEAST_SHARED = 16
"""A scale for fewer weights than this costs more than it gives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """The values that a quantised weight may take.

    Attributes:
        bits: Width of a code.
        group: Weights of a row that share a scale.
        format: `"integer"`, `"nf4"` or `"float8"`.

    Raises:
        ValueError: If the format has no codes of that width.
    """

    bits: int
    group: int = GROUP
    format: str = "integer"

    def __post_init__(self) -> None:
        widths = FORMATS[self.format].widths
        if self.bits not in widths:
            raise ValueError(f"widths of {self.format} are {widths}, but got {self.bits}")


class Packed(NamedTuple):
    """A quantised matrix: codes, a scale for each group or row, and for integers a zero point."""

    codes: Tensor
    scale: Tensor
    zero: Tensor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One way to write weights down.

    Attributes:
        widths: Bits that a code may have.
        encode: Quantises a matrix `(out, in)` on a grid.
        decode: Rebuilds `(out, in)`, given in any shape, in a dtype.
    """

    widths: tuple[int, ...]
    encode: Callable[[Tensor, Grid], Packed]
    decode: Callable[[Packed, Grid, tuple[int, int], torch.dtype], Tensor]


def quantise(weight: Tensor, grid: Grid) -> Packed:
    """Quantise a matrix `(out, in)`, each value to the nearest of its grid."""
    return FORMATS[grid.format].encode(weight.detach(), grid)


def dequantise(packed: Packed, grid: Grid, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Rebuild a matrix of `shape` in `dtype`."""
    return FORMATS[grid.format].decode(packed, grid, shape, dtype).view(shape)


def group_size(width: int, group: int = GROUP) -> int:
    """Return how many weights of a row of `width` share a scale.

    Returns:
        `group`, or for the usual 64 the part of it that divides the width, or the whole row.

    Raises:
        ModelError: If another group was asked for and does not divide the width.
    """
    shared = math.gcd(width, group)
    if shared < group and group != GROUP:
        raise ModelError(
            f"groups of {group} weights do not divide rows of {width}",
            help=f"set weight_bits.group to {GROUP}, which also takes a part of it",
        )
    return shared if shared >= _LEAST_SHARED else width


def to_integers(groups: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Round groups to an even grid between their least and greatest value.

    Args:
        groups: `(..., group)`, of any dtype.
        bits: Width of a code.

    Returns:
        Codes in uint8 of the same shape, and scale and zero point in fp16, `(..., 1)`.
    """
    wide = groups.float()
    low, high = wide.aminmax(dim=-1, keepdim=True)
    top = 2**bits - 1
    # Codes are chosen for the scale and the zero point as stored, so that rounding those to fp16
    # costs nothing; a constant group has no range, and any scale that is not zero will do.
    zero = low.half()
    scale = ((high - zero.float()) / top).clamp_min(2.0**-20).half()
    codes = (wide - zero.float()).div_(scale.float()).round_().clamp_(0, top)
    return codes.to(torch.uint8), scale, zero


def from_integers(codes: Tensor, scale: Tensor, zero: Tensor, dtype: torch.dtype) -> Tensor:
    """Undo `to_integers`, in `dtype`."""
    return codes.to(dtype).mul_(scale.to(dtype)).add_(zero.to(dtype))


def pack(values: Tensor, bits: int) -> Tensor:
    """Pack unsigned integers, eight of them into `bits` bytes, the first in the lowest bits.

    Args:
        values: uint8 below `2**bits`, in any shape; the last word is filled up with zeros.
        bits: Width of a value.

    Returns:
        uint8 of shape `(ceil(count / 8) * bits,)`.
    """
    flat = functional.pad(values.flatten(), (0, -values.numel() % _PER_WORD)).view(-1, _PER_WORD)
    words = torch.zeros(len(flat), dtype=torch.int64, device=flat.device)
    for place in range(_PER_WORD):
        words |= flat[:, place].to(torch.int64) << (place * bits)
    packed = torch.empty(len(flat), bits, dtype=torch.uint8, device=flat.device)
    for place in range(bits):
        packed[:, place] = (words >> (8 * place)) & 255
    return packed.flatten()


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """Return the first `count` values that `pack` packed, as uint8 of shape `(count,)`."""
    mask = (1 << bits) - 1
    if _PER_WORD % bits == 0:  # whole values in each byte: no wide words are needed
        shifts = torch.arange(0, 8, bits, device=packed.device, dtype=torch.uint8)
        return ((packed[:, None] >> shifts) & mask).flatten()[:count]
    words = torch.zeros(len(packed) // bits, dtype=torch.int64, device=packed.device)
    for place, column in enumerate(packed.view(-1, bits).unbind(1)):
        words |= column.to(torch.int64) << (8 * place)
    values = torch.empty(len(words), _PER_WORD, dtype=torch.uint8, device=packed.device)
    for place in range(_PER_WORD):
        values[:, place] = (words >> (place * bits)) & mask
    return values.flatten()[:count]


@cache
def normal_levels() -> tuple[float, ...]:
    """Return the 16 levels of the 4-bit normal float, from -1 to 1, among them exactly 0.

    Eight quantiles of the normal distribution above 0 and seven below, evenly spaced in
    probability; the outermost one leaves half a step of its side to the tail, on average over the
    two sides, whose steps differ.
    """
    outermost = ((1 - 1 / 32) + (1 - 1 / 30)) / 2
    quantile = NormalDist().inv_cdf

    def side(count: int) -> list[float]:
        step = (outermost - 0.5) / count
        return [quantile(0.5 + step * place) for place in range(1, count + 1)]

    greatest = quantile(outermost)
    levels = [-level for level in reversed(side(7))] + [0.0] + side(8)
    return tuple(level / greatest for level in levels)


def _encode_integers(weight: Tensor, grid: Grid) -> Packed:
    groups = weight.reshape(-1, group_size(weight.shape[1], grid.group))
    codes, scale, zero = to_integers(groups, grid.bits)
    return Packed(pack(codes, grid.bits), scale, zero)


def _decode_integers(
    packed: Packed, grid: Grid, shape: tuple[int, int], dtype: torch.dtype
) -> Tensor:
    assert packed.zero is not None
    codes = unpack(packed.codes, grid.bits, math.prod(shape)).view(len(packed.scale), -1)
    return from_integers(codes, packed.scale, packed.zero, dtype)


def _encode_normal(weight: Tensor, grid: Grid) -> Packed:
    groups = weight.reshape(-1, group_size(weight.shape[1], grid.group)).float()
    # As with integers: codes are chosen for the scale as stored.
    scale = groups.abs().amax(dim=1, keepdim=True).clamp_min(2.0**-20).half()
    levels = torch.tensor(normal_levels(), device=weight.device)
    shares = (groups / scale.float()).contiguous()
    codes = torch.bucketize(shares, (levels[1:] + levels[:-1]) / 2)
    return Packed(pack(codes.to(torch.uint8), grid.bits), scale, None)


def _decode_normal(
    packed: Packed, grid: Grid, shape: tuple[int, int], dtype: torch.dtype
) -> Tensor:
    levels = torch.tensor(normal_levels(), device=packed.codes.device).to(dtype)
    codes = unpack(packed.codes, grid.bits, math.prod(shape)).view(len(packed.scale), -1)
    return functional.embedding(codes.int(), levels[:, None])[..., 0].mul_(packed.scale.to(dtype))


def _encode_float8(weight: Tensor, grid: Grid) -> Packed:
    greatest = torch.finfo(torch.float8_e4m3fn).max
    scale = weight.float().abs().amax(dim=1, keepdim=True).clamp_min(2.0**-20) / greatest
    # Some devices give NaN beyond the greatest value, which rounding the quotient may pass.
    codes = (weight.float() / scale).clamp_(-greatest, greatest)
    return Packed(codes.to(torch.float8_e4m3fn), scale, None)


def _decode_float8(
    packed: Packed, grid: Grid, shape: tuple[int, int], dtype: torch.dtype
) -> Tensor:
    return packed.codes.to(dtype).mul_(packed.scale.to(dtype))


FORMATS = {
    "integer": Format(widths=WIDTHS, encode=_encode_integers, decode=_decode_integers),
    "nf4": Format(widths=(4,), encode=_encode_normal, decode=_decode_normal),
    "float8": Format(widths=(8,), encode=_encode_float8, decode=_decode_float8),
}
