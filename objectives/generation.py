"""Scores of tokens: all at once, or as in generation, with a cache of keys and values.

A model that generates reads its text once and keeps the keys and values of what it has read. What
that cache costs, in memory and, when it is quantised, in quality, shows only when the evaluation
reads in the same way: piece by piece, each piece attending to the cache.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from autotune.knobs.packed_cache import make_cache
from autotune.knobs.stages import EvalPlan

from .logits import changes_logits, few_logits, inner

PIECE = 64
"""Tokens that are read at once when streaming."""

STREAMED = frozenset(
    {
        *("apertus", "arcee", "biogpt", "bloom", "codegen", "cohere", "cohere2", "deepseek_v3"),
        *("ernie4_5", "exaone4", "falcon", "gemma", "gemma2", "gemma3_text", "glm", "glm4"),
        *("gpt2", "gpt_bigcode", "gpt_neox", "gptj", "granite", "granitemoe", "helium"),
        *("hunyuan_v1_dense", "llama", "ministral", "mistral", "mixtral", "mpt", "nemotron"),
        *("olmo", "olmo2", "olmoe", "opt", "persimmon", "phi", "phi3", "phimoe", "qwen2"),
        *("qwen2_moe", "qwen3", "qwen3_moe", "seed_oss", "smollm3", "stablelm", "starcoder2"),
        *("xglm"),
    }
)
"""Families whose keys and values are all in a cache of the usual kind."""


def token_scores(
    model: nn.Module, tokens: Tensor, labels: Tensor, plan: EvalPlan
) -> tuple[Tensor, Tensor]:
    """Score every token of a batch under what stands before it.

    Args:
        model: The language model, on the device of the tokens.
        tokens: `(batch, tokens)`.
        labels: The token that follows each `(batch, tokens)`.
        plan: Whether to stream, and the bits of the cache.

    Returns:
        Loss in nats and whether the best guess is right, both `(batch, tokens)`.
    """
    if not plan.stream:
        return _scored(model, tokens, labels, plan)
    # A model that changes its logits is asked for one sequence at a time: see `few_logits`.
    together = 1 if changes_logits(model) else len(tokens)
    rows = [
        _streamed(model, some, right, plan)
        for some, right in zip(tokens.split(together), labels.split(together), strict=True)
    ]
    losses, hits = zip(*rows, strict=True)
    return torch.cat(losses), torch.cat(hits)


def _streamed(
    model: nn.Module, tokens: Tensor, labels: Tensor, plan: EvalPlan
) -> tuple[Tensor, Tensor]:
    cache = make_cache(inner(model), plan.cache_bits)
    scored = [
        _scored(model, piece, right, plan, past_key_values=cache, use_cache=True)
        for piece, right in zip(tokens.split(PIECE, 1), labels.split(PIECE, 1), strict=True)
    ]
    losses, hits = zip(*scored, strict=True)
    return torch.cat(losses, 1), torch.cat(hits, 1)


def _scored(
    model: nn.Module, tokens: Tensor, labels: Tensor, plan: EvalPlan, **cached: Any
) -> tuple[Tensor, Tensor]:
    losses, hits = [], []
    for logits, right in few_logits(model, tokens, labels, plan.loss_chunks, **cached):
        losses.append(cross_entropy(logits, right, reduction="none"))
        hits.append(logits.argmax(-1) == right)
    return torch.cat(losses).view_as(labels), torch.cat(hits).view_as(labels)
