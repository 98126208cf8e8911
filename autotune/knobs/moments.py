"""The moments that optimizers keep, in 32, 16, 8 or 4 bits per value.

| bits | stored as | bytes per value |
|---|---|---|
| 32 | fp32 | 4 |
| 16 | bf16 | 2 |
| 8 | codes in blocks of 256, a scale in fp32 each | 1.016 |
| 4 | codes in blocks of 128, two to a byte, a scale in fp32 each | 0.531 |

Whatever is shorter than fp32 is rounded stochastically (`knobs/rounding.py`), since an average that
is rounded to nearest cannot decay. Codes are even steps in the square root of the scaled value:
fine where values are small, and, for a second moment, even in what the update divides by. The
lowest code of a second moment stands for a value above zero: dividing by zero is what made earlier
attempts at 4 bits diverge.

References:
    Dettmers et al. 2022, arXiv:2110.02861 (block-wise 8-bit states);
    Li et al. 2023, arXiv:2309.01507 (4 bits, and a second moment without zero).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from autotune.knobs.rounding import round_stochastically

if TYPE_CHECKING:
    from torch import Tensor

SIGNED = {"mean": True, "square": False}
"""The moments that optimizers keep, and whether they can be negative."""

_FLOOR = 0.5  # a square of code 0 lies somewhere below code 1; the update must not divide by 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """How codes of one width are laid out.

    Attributes:
        size: Values that share a scale; even.
        signed_top: Greatest code where codes have a sign.
        top: Greatest code where they have none.
        packed: Two codes share a byte.
    """

    size: int
    signed_top: int
    top: int
    packed: bool

    def new(self, name: str, count: int, device: torch.device) -> Tensor:
        """Return codes of `count` zeros."""
        signed = SIGNED[name] and not self.packed
        width = self.size // 2 if self.packed else self.size
        fill = self.signed_top * 17 if self.packed and SIGNED[name] else 0
        dtype = torch.int8 if signed else torch.uint8
        return torch.full((-(-count // self.size), width), fill, dtype=dtype, device=device)

    def highest(self, name: str) -> int:
        """Return the code that stands for the scale itself."""
        return self.signed_top if SIGNED[name] else self.top

    def read(self, name: str, stored: Tensor) -> Tensor:
        """Return codes as fp32 `(blocks, size)`."""
        if not self.packed:
            return stored.float()
        codes = torch.stack((stored & 15, stored >> 4), -1).flatten(-2).float()
        return codes.sub_(self.signed_top) if SIGNED[name] else codes

    def write(self, name: str, target: Tensor, codes: Tensor) -> None:
        """Store codes; fp32 `(blocks, size)`, used up."""
        if not self.packed:
            target.copy_(codes)
            return
        if SIGNED[name]:
            codes.add_(self.signed_top)
        pairs = codes.to(torch.uint8).view(len(codes), -1, 2)
        target.copy_(pairs[..., 0] | (pairs[..., 1] << 4))


BLOCKS = {
    8: Blocks(size=256, signed_top=127, top=255, packed=False),
    4: Blocks(size=128, signed_top=7, top=15, packed=True),
}


def new_moment(name: str, count: int, device: torch.device, bits: int) -> dict[str, Tensor]:
    """Return zeros for one moment, as entries of an optimizer's state.

    Args:
        name: Key of `SIGNED`.
        count: Number of values.
        device: Where it lives.
        bits: 32, 16, 8 or 4.
    """
    if bits not in BLOCKS:
        dtype = torch.float32 if bits == 32 else torch.bfloat16
        return {name: torch.zeros(count, dtype=dtype, device=device)}
    codes = BLOCKS[bits].new(name, count, device)
    return {name: codes, f"{name}_scale": torch.zeros(len(codes), 1, device=device)}


def load(state: Mapping[str, Any], name: str, part: slice, bits: int) -> Tensor:
    """Return values `part` of a moment in fp32; a view if they are stored so.

    The part starts at a multiple of the block size.
    """
    if bits not in BLOCKS:
        values: Tensor = state[name][part].float()
        return values
    layout = BLOCKS[bits]
    blocks, top = _blocks(part, layout), layout.highest(name)
    codes = layout.read(name, state[name][blocks])
    squared = codes.mul_(codes.abs()) if SIGNED[name] else codes.clamp_min_(_FLOOR).square_()
    values = squared.mul_(state[f"{name}_scale"][blocks] / top**2)
    return values.flatten()[: part.stop - part.start]


def store(
    state: Mapping[str, Any], name: str, part: slice, bits: int, values: Tensor, noise: Tensor
) -> None:
    """Write values `part` of a moment; those that `load` gave as a view are there already.

    Args:
        state: Entries of `new_moment`.
        name: Key of `SIGNED`.
        part: As for `load`.
        bits: As for `new_moment`.
        values: fp32 `(count,)`; used up.
        noise: Uniform in [0, 1), at least as many as the values, rounded up to whole blocks.
    """
    if bits == 32:
        return
    if bits == 16:
        round_stochastically(state[name][part], values, noise[: len(values)])
        return
    layout = BLOCKS[bits]
    blocks, top = _blocks(part, layout), layout.highest(name)
    padded = functional.pad(values, (0, -len(values) % layout.size)).view(-1, layout.size)
    noise = noise[: padded.numel()].view_as(padded)
    squared = padded.abs()
    scale = squared.amax(1, keepdim=True)
    squared.mul_(top**2 / scale.clamp(min=1e-30)).clamp_max_(top**2)
    code = squared.sqrt().floor_()
    # Code k stands for k², so a value between k² and (k+1)² is rounded up if it is above
    # k² + noise · ((k+1)² - k²): that makes the mean right.
    bar = code.add(noise, alpha=2).mul_(code).add_(noise)
    code.add_(squared > bar)
    layout.write(name, state[name][blocks], code.copysign_(padded) if SIGNED[name] else code)
    state[f"{name}_scale"][blocks] = scale


def by_piece(
    state: Mapping[str, Any], names: Sequence[str], count: int, bits: int, noise: Tensor
) -> Iterator[tuple[slice, list[Tensor]]]:
    """Yield each piece and its moments in fp32; what was made of them in place is stored.

    Args:
        state: Entries of `new_moment` for each name.
        names: Keys of `SIGNED`.
        count: Number of values.
        bits: As for `new_moment`.
        noise: One value for each of a piece.
    """
    for start in range(0, count, len(noise)):
        part = slice(start, min(start + len(noise), count))
        moments = [load(state, name, part, bits) for name in names]
        yield part, moments
        for name, moment in zip(names, moments, strict=True):
            store(state, name, part, bits, moment, noise)


def _blocks(part: slice, layout: Blocks) -> slice:
    return slice(part.start // layout.size, -(-part.stop // layout.size))
