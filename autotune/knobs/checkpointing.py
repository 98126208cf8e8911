"""Activation checkpointing: blocks keep little and are computed again in backward.

A recomputed block keeps its input only. With `selective`, the outputs of its matrix products and of
its attention are kept too, so that backward repeats only what is cheap: norms, activation
functions, residual sums. It comes after pruning, quantisation and adapters, and recomputes the
blocks in whatever form those left them. Dropout repeats its mask.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from autotune.core.context import Context
from autotune.core.domains import Choice
from autotune.core.knob import Knob, Numerics
from autotune.knobs.architectures import RECURRENT
from autotune.knobs.stages import ADAPT, DEPLOY, on_model

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

EVERY = {"every_third": 3, "every_other": 2, "selective": 1, "full": 1}
"""One block in how many is recomputed."""

EXPENSIVE = (
    "mm",
    "addmm",
    "bmm",
    "baddbmm",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
)
"""Operators of aten whose outputs `selective` keeps: matrix products, and fused attention."""


def _recompute_blocks(model: nn.Module, value: str) -> nn.Module:
    from torch.utils.checkpoint import checkpoint
    from transformers.modeling_layers import GradientCheckpointingLayer

    from autotune.knobs.blocks import find_blocks

    # Non-reentrant checkpointing needs no input that requires a gradient, so it works on a frozen
    # base too, where transformers' own switch would add a hook to the embeddings.
    recompute = partial(checkpoint, use_reentrant=False)
    if value == "selective":
        recompute = partial(recompute, context_fn=_keep_expensive)
    for _, block in find_blocks(model)[:: EVERY[value]]:
        if isinstance(block, GradientCheckpointingLayer):  # these drop caches as well
            vars(block).update(gradient_checkpointing=True, _gradient_checkpointing_func=recompute)
        else:
            vars(block)["forward"] = partial(_recomputed, block, block.forward, recompute)
    return model


def _keep_expensive() -> Any:
    import torch
    from torch.utils.checkpoint import create_selective_checkpoint_contexts

    operators = [getattr(torch.ops.aten, name).default for name in EXPENSIVE]
    return create_selective_checkpoint_contexts(operators)


def _recomputed(
    block: nn.Module,
    forward: Callable[..., Any],
    recompute: Callable[..., Any],
    *args: Any,
    **kwargs: Any,
) -> Any:
    return recompute(forward, *args, **kwargs) if block.training else forward(*args, **kwargs)


def _keep_again(model: nn.Module, value: str) -> nn.Module:
    from autotune.knobs.blocks import find_blocks

    for _, block in find_blocks(model):
        replaced = vars(block).get("forward")
        if isinstance(replaced, partial) and replaced.func is _recomputed:
            del vars(block)["forward"]
        for name in ("gradient_checkpointing", "_gradient_checkpointing_func"):
            vars(block).pop(name, None)
    return model


def _needs_blocks(value: str, context: Context) -> str | None:
    if value == "none":
        return None
    if context.model.family in RECURRENT:
        return "a recurrent model has no blocks to compute again: set checkpointing to none"
    if value == "selective" and context.config.get("attention", "sdpa") == "flex":
        return (
            "what flex attention computes cannot be kept by operator: set checkpointing to full, "
            "or attention to sdpa"
        )
    return None


CHECKPOINTING = Knob(
    name="checkpointing",
    help="Recomputes activations of every third, every other or every block in the backward pass, "
    "or of every block but for its matrix products (selective); less memory, same result, up to a "
    "third more time.",
    domain=Choice(("none", "every_third", "every_other", "selective", "full")),
    neutral="none",
    leanest="full",
    label="ckpt {}",
    numerics=Numerics.EXACT,
    transforms=(ADAPT.do(on_model(_recompute_blocks)), DEPLOY.do(_keep_again)),
    blocked=_needs_blocks,
    references=(
        "Chen et al. 2016, arXiv:1604.06174",
        "Korthikanti et al. 2022, arXiv:2205.05198 (selective)",
    ),
)
