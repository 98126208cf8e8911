"""Learning from a teacher as well as from labels.

The teacher sees what the student sees: hooks note the arguments of the student's forward pass and
what it gave, so any objective can be distilled without knowing of it. The loss is::

    (1 - weight) * objective's loss + weight * distance

where the distance is, for logits, the Kullback-Leibler divergence at a temperature, times its
square, and for hidden states the mean squared difference of the last ones, relative to the
teacher's.

References:
    Hinton et al. 2015, arXiv:1503.02531; Jiao et al. 2019, arXiv:1909.10351 (hidden states).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from autotune.core.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

TOKENS_AT_ONCE = 512
"""Tokens whose divergence is computed at once: fp32 copies of logits exist only for these."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Distillation:
    """A teacher, and how much it counts.

    Attributes:
        teacher: In evaluation mode, without gradients.
        of: `"logits"` or `"hidden"`.
        weight: Share of the teacher in the loss, from 0 to 1.
        temperature: Divides logits, for `of="logits"`.
    """

    teacher: nn.Module
    of: str = "logits"
    weight: float = 0.5
    temperature: float = 2.0


class Distiller:
    """Listens to a student's forward passes and adds what its teacher says of them.

    Args:
        student: The trained model, on its device.
        distillation: Its teacher; moved to the same device.
    """

    def __init__(self, student: nn.Module, distillation: Distillation) -> None:
        self.plan = distillation
        device = next(student.parameters()).device
        self.teacher = distillation.teacher.to(device).eval().requires_grad_(False)
        self._inputs: Mapping[str, Any] | None = None
        self._output: Any = None
        listened = student if distillation.of == "logits" else _base(student)
        self._answering = self.teacher if distillation.of == "logits" else _base(self.teacher)
        self._hook = listened.register_forward_hook(self._note, with_kwargs=True)

    def leave(self) -> None:
        """Stop listening, so that the teacher can go."""
        self._hook.remove()
        self._inputs = self._output = None

    def mix(self, loss: Tensor) -> Tensor:
        """Return the loss of a training step, mixed with the distance to the teacher.

        Args:
            loss: Scalar, of the forward pass that was heard last.

        Raises:
            ModelError: If there was no forward pass, or student and teacher do not compare.
        """
        if self._inputs is None:
            raise ModelError(
                "the objective's loss does not call the whole model, so a teacher cannot listen",
                help="set distill to none, or loss_chunks to 1",
            )
        with torch.no_grad():
            told = _chosen(self._answering(**self._inputs), self.plan.of)
        said = _chosen(self._output, self.plan.of)
        self._inputs = self._output = None
        if said.shape != told.shape:
            raise ModelError(
                f"the teacher's {self.plan.of} have shape {tuple(told.shape)} and the student's "
                f"{tuple(said.shape)}",
                help="name a teacher with the same vocabulary (and width, for hidden states)",
            )
        distance = self._divergence(said, told) if self.plan.of == "logits" else _gap(said, told)
        return (1.0 - self.plan.weight) * loss + self.plan.weight * distance

    def _note(self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        if module.training:
            self._inputs = {k: v for k, v in kwargs.items() if k != "labels"}
            self._output = output

    def _divergence(self, said: Tensor, told: Tensor) -> Tensor:
        heat = self.plan.temperature
        rows, wanted = said.flatten(0, -2), told.flatten(0, -2)
        total = rows.new_zeros((), dtype=torch.float32)
        for some, right in zip(
            rows.split(TOKENS_AT_ONCE), wanted.split(TOKENS_AT_ONCE), strict=True
        ):
            total = total + functional.kl_div(
                functional.log_softmax(some.float() / heat, -1),
                functional.log_softmax(right.float() / heat, -1),
                reduction="sum",
                log_target=True,
            )
        return total * heat**2 / len(rows)


def _base(model: nn.Module) -> nn.Module:
    prefix = getattr(model, "base_model_prefix", "")
    base = getattr(model, prefix, None) if prefix else None
    if base is None:
        raise ModelError(
            f"{type(model).__name__} has no inner model whose hidden states could be compared",
            help="set distill to logits",
        )
    found: nn.Module = base
    return found


def _chosen(output: Any, of: str) -> Tensor:
    name = "logits" if of == "logits" else "last_hidden_state"
    found = getattr(output, name, None)
    if found is None:
        raise ModelError(
            f"the model's forward pass gives no {name}", help="set distill to another value"
        )
    tensor: Tensor = found
    return tensor


def _gap(said: Tensor, told: Tensor) -> Tensor:
    wanted = told.float()
    return functional.mse_loss(said.float(), wanted) / wanted.square().mean().clamp_min(1e-8)
