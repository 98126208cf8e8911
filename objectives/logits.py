"""The parts of a language model that its logits come from, and logits of few tokens at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from autotune.knobs.loss_chunks import CHANGES_LOGITS

_TOKENS_AT_ONCE = 256
"""Tokens whose logits exist at once in an evaluation."""


def inner(model: nn.Module) -> nn.Module:
    """Return the model of transformers inside what adapters may have put around it."""
    found = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]  # a method of peft
    assert isinstance(found, nn.Module)
    return found


def hidden_states(model: nn.Module, tokens: Tensor, **cached: Any) -> Tensor:
    """Return what the output layer gets, `(batch, tokens, width)`.

    Args:
        model: The language model.
        tokens: `(batch, tokens)`.
        cached: What else its forward pass takes, such as `past_key_values`.
    """
    hidden: Tensor = inner(model).base_model(input_ids=tokens, **cached).last_hidden_state  # type: ignore[operator]  # a module of transformers
    return hidden


def output_layer(model: nn.Module) -> nn.Module:
    """Return the layer that makes logits of hidden states."""
    head = inner(model).get_output_embeddings()  # type: ignore[operator]  # a method of transformers
    assert isinstance(head, nn.Module)
    return head


def changes_logits(model: nn.Module) -> bool:
    """Whether the model does more to its logits than a matrix product."""
    config = inner(model).config
    return bool(config.get_text_config().model_type in CHANGES_LOGITS)  # type: ignore[union-attr, operator]  # of transformers


def few_logits(
    model: nn.Module, tokens: Tensor, labels: Tensor, chunks: int, **cached: Any
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield logits `(few, vocab)` in fp32 and their labels `(few,)`.

    Logits of few tokens exist at once, whatever `chunks`: no gradients need the others.

    Args:
        model: The language model.
        tokens: `(batch, tokens)`; one sequence only, if there is a cache and the model changes its
            logits.
        labels: The token that follows each `(batch, tokens)`.
        chunks: Pieces, at least.
        cached: As in `hidden_states`.
    """
    if changes_logits(model):
        for sequence, right in zip(tokens, labels, strict=True):
            yield model(input_ids=sequence[None], **cached).logits[0].float(), right
        return
    head = output_layer(model)
    hidden = hidden_states(model, tokens, **cached).flatten(0, 1)
    few = min(_TOKENS_AT_ONCE, math.ceil(len(hidden) / chunks))
    for states, right in zip(hidden.split(few), labels.flatten().split(few), strict=True):
        yield head(states).float(), right
