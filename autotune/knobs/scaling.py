"""Loss scaling: gradients in 16 bits that would round to zero are made larger by a common factor.

The factor halves whenever a gradient overflows, in which case the step is left out, and doubles
after a long run without.

References:
    Micikevicius et al. 2017, arXiv:1710.03740.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

FIRST_FACTOR = 2.0**12
MOST_FACTOR = 2.0**24
STEPS_BETWEEN = 200


class LossScaler:
    """The factor, and what became of the last gradients."""

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
        """
        grads = [p.grad for p in parameters if p.grad is not None]
        if not all(bool(torch.isfinite(grad).all()) for grad in grads):
            self.factor = max(1.0, self.factor / 2)
            self._good_steps = 0
            return False
        for grad in grads:
            grad.div_(self.factor)
        self._good_steps += 1
        if self._good_steps % STEPS_BETWEEN == 0:
            self.factor = min(MOST_FACTOR, self.factor * 2)
        return True
