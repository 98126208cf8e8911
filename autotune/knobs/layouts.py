"""What stands against a layout: pure arithmetic on model, batch and devices, no torch.

A layout is spread over several knobs, which only make sense together. `layout_of` reads them as one
plan; `EXCLUSIONS` is the table of what else a configuration must not have. Each knob asks for its
own part, so that every sentence names the knob to set.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from autotune.core.context import Context
from autotune.core.domains import Value
from autotune.knobs.architectures import (
    ATTENTION_HEADS,
    BLOCKS,
    FEED_FORWARD,
    kept_blocks,
    kept_groups,
    kept_width,
)
from autotune.knobs.exclusion import BaseExclusion
from autotune.knobs.global_batch import effective_batch
from autotune.knobs.stages import LayoutPlan

DEGREES = (1, 2, 4, 8, 16, 32, 64)
"""Ranks that may share something."""

RANKS = (*range(1, 10), 12, 16, 17, 24, 32, 33, 48, 64, 65, 96, 128, 256, 512, 1024)
"""Ranks of one training; those by one above a power of two leave that many workers to a server."""

SHARDED = ("zero2", "zero3")
"""Values of layout.data with which no rank has all weights."""

ONE_STACK = frozenset((
    *("bert", "camembert", "ernie", "roberta", "xlm-roberta", "gpt2", "gpt_neox", "opt", "phi"),
    *("gemma", "granite", "llama", "mistral", "qwen2", "qwen3", "smollm3", "olmo", "olmo2"),
))  # fmt: skip
"""Families that are one stack of blocks, each of which takes what the one before it gives."""

CAUSAL = frozenset(("llama", "mistral", "qwen2", "qwen3", "smollm3", "olmo", "granite", "gpt2"))
"""Families whose attention looks back, takes positions, and has no window."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exclusion(BaseExclusion):
    """Values of another knob that a layout cannot have.

    Attributes:
        when: The layouts that it holds for.
    """

    when: Callable[[LayoutPlan], bool]


def layout_of(context: Context) -> LayoutPlan:
    """Return the layout that a configuration's knobs describe."""
    config = context.config
    return LayoutPlan(
        ranks=int(config.get("layout.ranks", 1)),
        data=str(config.get("layout.data", "ddp")),
        shards=int(config.get("layout.shards", 0)),
        tensor=int(config.get("layout.tensor", 1)),
        pipeline=int(config.get("layout.pipeline", 1)),
        schedule=str(config.get("layout.schedule", "1f1b")),
        context=int(config.get("layout.context", 1)),
        servers=int(config.get("layout.servers", 1)),
        staleness=int(config.get("layout.staleness", 0)),
    )


def refuse_ranks(ranks: int, context: Context) -> str | None:
    """Say why so many ranks cannot train a configuration, or None."""
    if ranks == 1:
        return None
    if ranks > context.devices:
        return (
            f"{ranks} ranks need {ranks} devices, and a trial may use {context.devices}: set "
            f"layout.ranks to {context.devices} or less, or give more with --devices {ranks}"
        )
    layout = layout_of(context)
    return _refuse_product(layout) or _refuse_batch(layout, context) or _excluded(layout, context)


def refuse_tensor(degree: int, context: Context) -> str | None:
    """Say why matrices cannot be shared by so many ranks, or None."""
    if degree == 1:
        return None
    model = context.model
    known = ATTENTION_HEADS.get(model.family)
    fused = known is None or known.key is None or known.uniform
    if model.family and (fused or model.family not in FEED_FORWARD):
        return (
            f"the matrices of the family '{model.family}' cannot be shared by ranks: it has none "
            "that are known, or fuses query, key and value; set layout.tensor to 1, or share "
            "weights with layout.data zero3"
        )
    groups = kept_groups(model.kv_heads, float(context.config.get("prune.heads", 0.0))) or 0
    width = kept_width(model.ffn, float(context.config.get("prune.ffn", 0.0))) if model.ffn else 0
    sizes = (("key/value heads", groups), ("feed-forward units", width))
    for name, size in sizes:
        if size % degree:
            return (
                f"{size} {name} cannot be shared by {degree} ranks: set layout.tensor to a number "
                f"that divides {size}"
            )
    return None


def refuse_pipeline(stages: int, context: Context) -> str | None:
    """Say why a model cannot be split into so many stages, or None."""
    if stages == 1:
        return None
    model = context.model
    if model.family and (model.family not in ONE_STACK or model.family not in BLOCKS):
        return (
            f"a model of the family '{model.family}' is not one stack of blocks that could be "
            "split: set layout.pipeline to 1"
        )
    blocks = kept_blocks(model.layers, float(context.config.get("prune.layers", 0.0)))
    if model.layers and blocks < stages:
        return (
            f"{blocks} blocks cannot be split into {stages} stages: set layout.pipeline to "
            f"{blocks} or less"
        )
    if context.purpose == "inference":
        return (
            "stages cannot share the cache that keys and values are kept in while sequences are "
            "read: set layout.pipeline to 1"
        )
    accumulation = int(context.config.get("accumulation", 1))
    if accumulation < stages:
        return (
            f"a pipeline of {stages} stages needs as many micro-batches to fill it: set "
            f"accumulation to {stages} or more"
        )
    return None


def refuse_context(degree: int, context: Context) -> str | None:
    """Say why sequences cannot be split among so many ranks, or None."""
    if degree == 1:
        return None
    family, vocab = context.model.family, context.model.vocab
    if family and (family not in CAUSAL or not vocab):
        return (
            f"only language models whose attention looks back can share a sequence, and "
            f"'{family}' here is none of those known: set layout.context to 1"
        )
    tokens = context.sequence_length * float(context.config.get("sequence_length", 1.0))
    if tokens % degree:
        return (
            f"sequences of {tokens:g} tokens cannot be split among {degree} ranks: set "
            "layout.context to 1, or another sequence_length"
        )
    return None


def refuse_idle(
    value: Value, context: Context, *, neutral: Value, used: Callable[[LayoutPlan], bool], help: str
) -> str | None:
    """Return `help` for a value that is off neutral where the layout has no use for it."""
    return None if value == neutral or used(layout_of(context)) else help


def served(layout: LayoutPlan) -> bool:
    """Whether ranks of their own hold parameters."""
    return layout.data == "server"


def piped(layout: LayoutPlan) -> bool:
    """Whether ranks have some of the blocks each."""
    return layout.pipeline > 1


def divided(layout: LayoutPlan) -> bool:
    """Whether ranks with different sequences divide weights or gradients."""
    return layout.ranks > 1 and layout.data in SHARDED


def _refuse_product(layout: LayoutPlan) -> str | None:
    inner = layout.tensor * layout.pipeline * layout.context
    if served(layout):
        if inner > 1 or layout.servers >= layout.ranks:
            return (
                "a parameter server's ranks are servers and workers and nothing else: set "
                f"layout.servers below {layout.ranks}, and layout.tensor, layout.pipeline and "
                "layout.context to 1"
            )
        return None
    if layout.ranks % inner:
        return (
            f"tensor {layout.tensor} x pipeline {layout.pipeline} x context {layout.context} does "
            f"not divide {layout.ranks} ranks: set layout.ranks to a multiple of {inner}"
        )
    if layout.data in SHARDED and layout.shards and layout.replicas % layout.shards:
        return (
            f"groups of {layout.shards} do not divide {layout.replicas} ranks that see different "
            "sequences: set layout.shards to 0, or to a divisor"
        )
    return None


def _refuse_batch(layout: LayoutPlan, context: Context) -> str | None:
    batch = effective_batch(context)
    pieces = layout.replicas * int(context.config.get("accumulation", 1))
    if batch % pieces == 0:
        return None
    return (
        f"a global batch of {batch:g} cannot be shared by {layout.replicas} ranks with "
        f"{pieces // layout.replicas} micro-batches each: set layout.ranks or accumulation to "
        "numbers whose product divides it"
    )


def _excluded(layout: LayoutPlan, context: Context) -> str | None:
    for exclusion in EXCLUSIONS:
        if exclusion.when(layout) and exclusion.meets(context):
            return exclusion.sentence("layout.ranks to 1")
    return None


def _any(layout: LayoutPlan) -> bool:
    return True


def _not_plain(layout: LayoutPlan) -> bool:
    return layout.data != "ddp" or layout.sharded or layout.context > 1


def _sharded(layout: LayoutPlan) -> bool:
    return layout.sharded


def _tensor(layout: LayoutPlan) -> bool:
    return layout.tensor > 1


def _context(layout: LayoutPlan) -> bool:
    return layout.context > 1


_WHOLE = "a rank has no whole matrices to do that to in this layout"

EXCLUSIONS = (
    Exclusion(knob="compile", allowed=("none",), when=_any,
              because="compiled graphs do not see what ranks tell each other"),
    Exclusion(knob="activation_budget", allowed=(1.0,), when=_any,
              because="compiled graphs do not see what ranks tell each other"),
    Exclusion(knob="optimizer.in_backward", allowed=("no",), when=_any,
              because="an update in the backward pass would not wait for other ranks' gradients"),
    Exclusion(knob="optimizer.offload", allowed=("none",), when=_not_plain,
              because="states on the host are those of whole parameters"),
    Exclusion(knob="prune.schedule", allowed=("start",), when=_any,
              because="ranks share parameters as they are at the start"),
    Exclusion(knob="zero_grad", allowed=("release",), when=_any,
              because="gradients live in buffers that ranks exchange"),
    Exclusion(knob="gradients", allowed=("weights",), when=_any,
              because="gradients are exchanged in the precision of their weights"),
    Exclusion(knob="pool", allowed=("shared",), when=_any,
              because="pools are set up for one process"),
    Exclusion(knob="float8", allowed=("no",), when=_any,
              because="scales of float8 layers are not exchanged between ranks"),
    Exclusion(knob="weight_bits", allowed=(16,), when=_sharded, because=_WHOLE),
    Exclusion(knob="qat.bits", allowed=(16,), when=_sharded, because=_WHOLE),
    Exclusion(knob="deploy.bits", allowed=(16,), when=_sharded, because=_WHOLE),
    Exclusion(knob="deploy.activation_bits", allowed=(16,), when=_sharded, because=_WHOLE),
    Exclusion(knob="cache_bits", allowed=(16,), when=_sharded, because=_WHOLE),
    Exclusion(knob="prune.unstructured", allowed=(0.0,), when=_sharded, because=_WHOLE),
    Exclusion(knob="prune.nm", allowed=("none",), when=_sharded, because=_WHOLE),
    Exclusion(knob="distill", allowed=("none",), when=_not_plain,
              because="a teacher listens to a whole student"),
    Exclusion(knob="optimizer", allowed=("adamw", "sgd", "lion"), when=_sharded,
              because="this optimizer looks at whole matrices, and ranks have parts of them"),
    Exclusion(knob="precision", allowed=("fp32", "tf32", "bf16_mixed", "bf16"), when=_any,
              because="the scale of a loss in 16 bits is not agreed on between ranks"),
    Exclusion(knob="weights.storage", allowed=("memory",), when=_sharded, because=_WHOLE),
    Exclusion(knob="lora.rank", allowed=(0,), when=_tensor,
              because="adapters' own matrices are not shared by ranks"),
    Exclusion(knob="recompute.norms", allowed=("no",), when=_sharded, because=_WHOLE),
    Exclusion(knob="activation_offload", allowed=("none",), when=_sharded,
              because="what is offloaded is not told from what ranks share"),
    Exclusion(knob="activation_bits", allowed=(16,), when=_sharded,
              because="what is kept in fewer bits is not told from what ranks share"),
    Exclusion(knob="layout.data", allowed=("ddp",), when=piped,
              because="stages of a pipeline keep their own weights, gradients and states"),
    Exclusion(knob="layout.context", allowed=(1,), when=piped,
              because="a stage takes whole sequences"),
    Exclusion(knob="layout.tensor", allowed=(1,), when=piped,
              because="a stage keeps whole matrices"),
    Exclusion(knob="data.by_length", allowed=("no",), when=piped,
              because="stages hand on tensors of one shape"),
    Exclusion(knob="attention", allowed=("sdpa",), when=_context,
              because="attention over several ranks has one kernel"),
    Exclusion(knob="data.by_length", allowed=("no",), when=_context,
              because="parts of sequences are equally long"),
    Exclusion(knob="data.packing", allowed=("stream",), when=_context,
              because="parts of padded rows would not count alike"),
    Exclusion(knob="layout.tensor", allowed=(1,), when=_context,
              because="heads are not shared where sequences are"),
    Exclusion(knob="layout.data", allowed=("ddp", "zero1"), when=_context,
              because="ranks that share sequences keep whole weights"),
)  # fmt: skip
"""What a layout of more than one rank cannot be combined with."""
