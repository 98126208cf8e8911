"""Writing fp32 values to 16 bits without bias.

Rounding to nearest loses every change below half a unit of the last place. A bf16 weight near 1
needs a change of 0.002 to move at all, and a bf16 average of squares cannot decay. Rounding up with
the chance that makes the mean right keeps the sum of many small changes.

References:
    Zamirai et al. 2020, arXiv:2010.06192 (stochastic rounding of bf16 weights).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

PIECE = {"cpu": 2**18, "cuda": 2**22}
"""Values updated at once: what fits a CPU's cache; enough to keep a GPU busy."""

_DROPPED_BITS = {torch.bfloat16: 16, torch.float16: 13}


def round_stochastically(target: Tensor, value: Tensor, noise: Tensor) -> None:
    """Write `value` to `target`; to a 16-bit one so that the mean of what is written is the value.

    Args:
        target: fp32, bf16 or fp16, changed in place.
        value: fp32 of the same shape, contiguous; used up.
        noise: Uniform in [0, 1), of the same shape.
    """
    dropped = _DROPPED_BITS.get(target.dtype, 0)
    if dropped:
        # 16-bit mantissas are the upper part of fp32's: noise below carries with the right chance.
        value.view(torch.int32).add_((noise * 2**dropped).int()).bitwise_and_(-(2**dropped))
    target.copy_(value)


def generator(device: torch.device, seed: int) -> torch.Generator | None:
    """Return a generator apart from torch's own, so that dropout is the same whatever else draws.

    None where the device is not there: its tensors then have shapes only, in a rehearsal.
    """
    if device.type == "meta" or (device.type == "cuda" and not torch.cuda.is_available()):
        return None
    return torch.Generator(device).manual_seed(seed)


class Noise:
    """The noise of one step, drawn when it is first asked for and used for every piece.

    What matters is that it is new in the next step. It depends on the number of the step alone, so
    a training that is resumed rounds as the one that was not interrupted.
    """

    def __init__(self) -> None:
        self._drawn: dict[torch.device, tuple[int, Tensor]] = {}

    def of(self, device: torch.device, step: int) -> Tensor:
        """Return values that are uniform in [0, 1), one for each of a piece."""
        known = self._drawn.get(device)
        if known is not None and known[0] == step:
            return known[1]
        size = PIECE.get(device.type, PIECE["cuda"])
        drawn = torch.rand(size, generator=generator(device, step), device=device)
        self._drawn[device] = (step, drawn)
        return drawn

    def forget(self) -> None:
        """Give the memory back until the next step."""
        self._drawn.clear()
