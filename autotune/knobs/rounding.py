"""Storing fp32 values in fewer bits without bias: bf16 weights, 8-bit optimizer states.

Rounding to nearest loses every change below half a unit of the last place. A bf16 weight near 1
needs a change of 0.002 to move at all, and an 8-bit average cannot decay. Rounding up with the
chance that makes the mean right keeps the sum of many small changes.

Eight-bit states are stored in blocks of 256 with an fp32 scale each, 1.016 bytes per value. Codes
are even steps in the square root of the scaled value: fine where values are small, and, for a
second moment, even in what the update divides by.

References:
    Dettmers et al. 2022, arXiv:2110.02861 (block-wise 8-bit states);
    Zamirai et al. 2020, arXiv:2010.06192 (stochastic rounding of bf16 weights).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 256
"""Values that share a scale."""

SIGNED = {"mean": True, "square": False}
"""The moments that optimizers keep, and whether they can be negative."""

_FLOOR = 0.5  # a square of code 0 lies somewhere below code 1; the update must not divide by 0


def round_stochastically(target: Tensor, value: Tensor, noise: Tensor) -> None:
    """Write `value` to `target`; to a bf16 one so that the mean of what is written is the value.

    Args:
        target: fp32 or bf16, changed in place.
        value: fp32 of the same shape, contiguous; used up.
        noise: Uniform in [0, 1), of the same shape.
    """
    if target.dtype is torch.bfloat16:
        # bf16 is the upper half of fp32: noise in the lower half carries with the right chance.
        value.view(torch.int32).add_((noise * 2**16).int()).bitwise_and_(-(2**16))
    target.copy_(value)


def new_states(name: str, parameter: Tensor, bits: int) -> dict[str, Tensor]:
    """Return zeros for one moment of a parameter, as entries of an optimizer's state.

    Args:
        name: Key of `SIGNED`.
        parameter: What the moment is of.
        bits: 32 or 8.
    """
    count, device = parameter.numel(), parameter.device
    if bits == 32:
        return {name: torch.zeros(count, device=device)}
    blocks = -(-count // BLOCK)
    dtype = torch.int8 if SIGNED[name] else torch.uint8
    return {
        name: torch.zeros(blocks, BLOCK, dtype=dtype, device=device),
        f"{name}_scale": torch.zeros(blocks, 1, device=device),
    }


def load(state: Mapping[str, Any], name: str, part: slice) -> Tensor:
    """Return values `part` of a moment in fp32; a view if they are stored so.

    The part starts at a multiple of `BLOCK`.
    """
    stored: Tensor = state[name]
    if f"{name}_scale" not in state:
        return stored[part]
    blocks = _blocks(part)
    codes = stored[blocks].float()
    top = _top(name)
    squared = codes.mul_(codes.abs()) if SIGNED[name] else codes.clamp_min_(_FLOOR).square_()
    values = squared.mul_(state[f"{name}_scale"][blocks] / top**2)
    return values.flatten()[: part.stop - part.start]


def store(state: Mapping[str, Any], name: str, part: slice, values: Tensor, noise: Tensor) -> None:
    """Write values `part` of a moment; those that `load` gave as a view are there already.

    Args:
        state: Entries of `new_states`.
        name: Key of `SIGNED`.
        part: As for `load`.
        values: fp32 `(count,)`.
        noise: Uniform in [0, 1), at least as many as the values, rounded up to whole blocks.
    """
    if f"{name}_scale" not in state:
        return
    blocks, top = _blocks(part), _top(name)
    padded = functional.pad(values, (0, -len(values) % BLOCK)).view(-1, BLOCK)
    noise = noise[: padded.numel()].view_as(padded)
    squared = padded.abs()
    scale = squared.amax(1, keepdim=True)
    squared.mul_(top**2 / scale.clamp(min=1e-30)).clamp_max_(top**2)
    code = squared.sqrt().floor_()
    # Code k stands for k², so a value between k² and (k+1)² is rounded up if it is above
    # k² + noise · ((k+1)² - k²): that makes the mean right.
    bar = code.add(noise, alpha=2).mul_(code).add_(noise)
    code.add_(squared > bar)
    state[name][blocks] = code.copysign_(padded) if SIGNED[name] else code
    state[f"{name}_scale"][blocks] = scale


def _top(name: str) -> int:
    return 127 if SIGNED[name] else 255


def _blocks(part: slice) -> slice:
    return slice(part.start // BLOCK, -(-part.stop // BLOCK))
