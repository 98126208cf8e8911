"""Loss scaling: gradients in 16 bits that would round to zero are made larger by a common factor.

The factor halves whenever a gradient overflows, in which case the step is left out, and doubles
after a long run without. It is a power of two, so that dividing by it loses nothing but what fp16
cannot hold: fp16 gradients below 6e-8 are lost after all, those on the way to them were not.

References:
    Micikevicius et al. 2017, arXiv:1710.03740.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from autotune.core.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

FIRST_FACTOR = 2.0**12
MOST_FACTOR = 2.0**24
LEAST_FACTOR = 2.0**-12
STEPS_BETWEEN = 200


class LossScaler:
    """The factor, and what became of the last gradients.

    Attributes:
        factor: What losses are multiplied by now.
    """

    def __init__(self) -> None:
        self.factor = FIRST_FACTOR
        self._good_steps = 0

    def scale(self, loss: Tensor) -> Tensor:
        """Return the loss times the factor."""
        return loss * self.factor

    def unscale(self, parameters: Sequence[nn.Parameter]) -> bool:
        """Divide gradients by the factor, in place, and adapt it.

        Args:
            parameters: Those that have a gradient.

        Returns:
            Whether all gradients are finite, so that a step may be made.

        Raises:
            ModelError: If gradients overflow however small the factor is.
        """
        grads = [p.grad for p in parameters if p.grad is not None]
        # The largest value tells, in one number for all: infinite and NaN ones come through.
        if not math.isfinite(torch.nn.utils.get_total_norm(grads, math.inf)):
            self._good_steps = 0
            self.factor /= 2
            if self.factor < LEAST_FACTOR:
                raise ModelError(
                    "gradients overflow 16 bits however much the loss is scaled down",
                    help="set precision to bf16 or fp32",
                )
            return False
        for grad in grads:
            grad.div_(self.factor)
        self._good_steps += 1
        if self._good_steps % STEPS_BETWEEN == 0:
            self.factor = min(MOST_FACTOR, self.factor * 2)
        return True
