"""Learning from a teacher as well as from labels.

The teacher sees what the student sees: hooks note the arguments of the student's forward pass and
what it gave, so any objective can be distilled without knowing of it. The loss is::

    (1 - weight) * objective's loss + weight * distance

where the distance is, for logits, the Kullback-Leibler divergence at a temperature, times its
square, and for hidden states the squared difference of the last ones relative to the teacher's,
token by token, so that micro-batches add up to the whole. Padding does not count.

The teacher answers before the student's forward pass, when no activations of the student exist yet.
Of its answers, logits are the dear ones: their memory becomes that of the gradient, so one tensor
of their size is what they cost.

References:
    Hinton et al. 2015, arXiv:1503.02531; Jiao et al. 2019, arXiv:1909.10351 (hidden states).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from autotune.core.errors import ModelError
from autotune.knobs.dense import widen_linears

if TYPE_CHECKING:
    from torch import Tensor

VALUES_AT_ONCE = {"cpu": 2**18, "cuda": 2**22}
"""Logits compared at once: what fits a CPU's cache; enough to keep a GPU busy. Copies in fp32, of
which a few are needed, exist only for these."""

NOT_COUNTED = -100
"""Label of tokens that do not count, as everywhere in torch."""


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

    Raises:
        ModelError: If hidden states are to be compared and a model has none.
    """

    def __init__(self, student: nn.Module, distillation: Distillation) -> None:
        self.plan = distillation
        device = next(student.parameters()).device
        teacher = distillation.teacher.to(device).eval().requires_grad_(False)
        self.teacher = widen_linears(_without_cache(teacher))
        self._told: Tensor | None = None
        self._said: Tensor | None = None
        self._counted: Tensor | None = None
        asked, speaking = _ends(student, distillation.of)
        self._answering, teaching = _ends(self.teacher, distillation.of)
        self._hooks = (
            asked.register_forward_pre_hook(self._ask, with_kwargs=True),
            teaching.register_forward_hook(self._hear_teacher),
            speaking.register_forward_hook(self._hear_student),
        )

    def leave(self) -> None:
        """Stop listening, so that the teacher can go."""
        for hook in self._hooks:
            hook.remove()
        self._told = self._said = self._counted = None

    def mix(self, loss: Tensor) -> Tensor:
        """Return the loss of a training step, mixed with the distance to the teacher.

        Args:
            loss: Scalar, of the forward pass that was heard last.

        Raises:
            ModelError: If there was no forward pass, or student and teacher do not compare.
        """
        said, told, counted = self._said, self._told, self._counted
        self._told = self._said = self._counted = None
        if said is None or told is None:
            raise ModelError(
                "the objective's loss does not call the whole model, so a teacher cannot listen",
                help="set distill to none, or loss_chunks to 1",
            )
        if said.shape != told.shape:
            raise ModelError(
                f"the teacher's {self.plan.of} have shape {tuple(told.shape)} and the student's "
                f"{tuple(said.shape)}",
                help="name a teacher with the same vocabulary (and width, for hidden states)",
            )
        weights = _row_weights(counted, said)
        if self.plan.of == "logits":
            distance = _divergence(said, told, weights, self.plan.temperature)
        else:
            distance = _gap(said, told, weights)
        return (1.0 - self.plan.weight) * loss + self.plan.weight * distance

    def _ask(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not (module.training and torch.is_grad_enabled()):
            return
        self._counted = _counted(kwargs, encodes=_encodes_and_decodes(module))
        with torch.no_grad():
            self._answering(*args, **_question(kwargs, self._answering))

    def _hear_teacher(self, module: nn.Module, args: Any, output: Any) -> None:
        self._told = _chosen(output, self.plan.of)

    def _hear_student(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._told is not None:
            self._said = _chosen(output, self.plan.of)


def _ends(model: nn.Module, of: str) -> tuple[nn.Module, nn.Module]:
    """Return the module whose arguments are noted, and the one whose output is compared.

    For hidden states this is the inner model, which losses in pieces call too. An encoder-decoder
    without one has its hidden states come out of its decoder.
    """
    if of == "logits":
        return model, model
    base = getattr(model, "base_model", None)
    if not isinstance(base, nn.Module):
        raise ModelError(
            f"{type(model).__name__} has no inner model whose hidden states could be compared",
            help="set distill to logits",
        )
    has_head = model.get_output_embeddings() is not None  # type: ignore[operator]  # a method
    if base is model and has_head and _encodes_and_decodes(model):
        decoder: nn.Module = model.get_decoder()  # type: ignore[operator]  # a method
        return model, decoder
    return base, base


def _without_cache(model: nn.Module) -> nn.Module:
    """Have a model keep no keys and values, which evaluation mode would otherwise make it do."""
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if getattr(config, "use_cache", False):
            config.use_cache = False
    return model


def _encodes_and_decodes(model: nn.Module) -> bool:
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def _question(kwargs: Mapping[str, Any], teacher: nn.Module) -> dict[str, Any]:
    """Return the student's arguments as the teacher gets them: without labels, if it can.

    Labels would make it compute a loss. An encoder-decoder makes its decoder's input of them.
    """
    asked = {name: value for name, value in kwargs.items() if name != "labels"}
    labels = kwargs.get("labels")
    given = any(
        kwargs.get(name) is not None for name in ("decoder_input_ids", "decoder_inputs_embeds")
    )
    if labels is None or given or not _encodes_and_decodes(teacher):
        return asked
    shift = getattr(teacher, "prepare_decoder_input_ids_from_labels", None)
    if shift is None:
        return {**asked, "labels": labels}
    return {**asked, "decoder_input_ids": shift(labels=labels)}


def _counted(kwargs: Mapping[str, Any], *, encodes: bool) -> Tensor | None:
    """Return which tokens are none of padding, `(batch, tokens)`, where the arguments say it.

    Args:
        kwargs: Of the forward pass.
        encodes: Whether it is that of an encoder-decoder, whose answers are for other tokens than
            those that `attention_mask` is for.
    """
    mask: Tensor | None = kwargs.get("decoder_attention_mask" if encodes else "attention_mask")
    labels: Tensor | None = kwargs.get("labels")
    if mask is None and encodes and labels is not None:
        return labels != NOT_COUNTED
    return mask


def _row_weights(counted: Tensor | None, answers: Tensor) -> Tensor:
    """Return 1 for each answer that counts and else 0, flat; all count unless shapes agree."""
    shape = answers.shape[:-1]
    if counted is None or counted.shape != shape:
        return answers.new_ones(shape, dtype=torch.float32).flatten()
    return counted.flatten().to(answers.device, torch.float32)


def _chosen(output: Any, of: str) -> Tensor:
    name = "logits" if of == "logits" else "last_hidden_state"
    found = getattr(output, name, None)
    if found is None:
        raise ModelError(
            f"the model's forward pass gives no {name}", help="set distill to another value"
        )
    tensor: Tensor = found
    return tensor


def _gap(said: Tensor, told: Tensor, weights: Tensor) -> Tensor:
    wanted = told.float()
    apart = (said.float() - wanted).square().mean(-1)
    size = wanted.square().mean(-1).clamp_min(1e-8)
    distance: Tensor = (apart / size).flatten() @ weights
    return distance / weights.sum().clamp_min(1.0)


def _divergence(said: Tensor, told: Tensor, weights: Tensor, heat: float) -> Tensor:
    rows, wanted = said.flatten(0, -2), told.flatten(0, -2)
    result: Tensor = _Divergence.apply(rows, wanted, weights, heat)  # type: ignore[no-untyped-call]  # untyped there
    return result


class _Divergence(torch.autograd.Function):
    """The mean divergence of rows of logits; the teacher's are overwritten by the gradient."""

    @staticmethod
    def forward(ctx: Any, said: Tensor, told: Tensor, weights: Tensor, heat: float) -> Tensor:
        gradient = told if told.dtype is said.dtype else torch.empty_like(said)
        total = weights.new_zeros(())
        few = max(1, VALUES_AT_ONCE.get(said.device.type, 2**22) // said.shape[1])
        pieces = (t.split(few) for t in (said, told, gradient, weights))
        for ours, theirs, into, weight in zip(*pieces, strict=True):
            log_ours = functional.log_softmax(ours.float() / heat, -1)
            log_theirs = functional.log_softmax(theirs.float() / heat, -1)
            wanted = log_theirs.exp()
            total += (log_theirs.sub_(log_ours).mul_(wanted).sum(-1) * weight).sum()
            into.copy_(log_ours.exp_().sub_(wanted).mul_(heat * weight[:, None]))
        # Not divided by the number of rows yet, so that nothing underflows in 16 bits.
        ctx.save_for_backward(gradient)
        ctx.count = weights.sum().clamp_min(1.0)
        mean: Tensor = total * heat**2 / ctx.count
        return mean

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient.mul_(grad / ctx.count), None, None, None
