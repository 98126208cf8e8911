"""The part of the training script that makes the model: which pieces, and the calls of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Protocol

from autotune.export import snippets_model as pieces
from autotune.export.base import Subject
from autotune.export.script_knobs import TRANSPOSED, target_paths
from autotune.export.script_training import listed
from autotune.knobs.architectures import (
    ATTENTION_HEADS,
    BLOCKS,
    FEED_FORWARD,
    Attention,
    kept_blocks,
    kept_groups,
    kept_width,
)
from autotune.knobs.attention import SPELLED
from autotune.knobs.checkpointing import EVERY, EXPENSIVE
from autotune.knobs.freeze_layers import frozen_blocks


class Weights(Protocol):
    """Where the weights come from."""

    weights: str | None
    trust: bool


def functions(subject: Subject, config: Any) -> list[str]:
    """Return the functions that change the model, for the settings that are off neutral."""
    family, value = subject.spec.facts.model.family, subject.value
    pruned = bool(value("prune.ffn") or value("prune.heads"))
    wanted: tuple[tuple[bool, Callable[[], str]], ...] = (
        (_needs_blocks(subject), lambda: pieces.BLOCKS),
        (
            bool(value("prune.layers")),
            lambda: pieces.DROP_BLOCKS.format(setting=BLOCKS[family][0]),
        ),
        (pruned or value("lora.targets") != "all", lambda: pieces.TOGETHER),
        (pruned, lambda: pieces.KEEP_PART),
        (bool(value("prune.ffn")), lambda: _feed_forward(family)),
        (bool(value("prune.heads")), lambda: _heads(subject, config)),
        (bool(value("lora.rank")), lambda: _adapters(subject) + pieces.MERGE),
        (value("freeze.embeddings") == "yes", lambda: pieces.FREEZE_EMBEDDINGS),
        (value("checkpointing") != "none", lambda: _recompute(str(value("checkpointing")))),
        (value("recompute.norms") == "yes", lambda: pieces.RECOMPUTE_NORMS),
        (value("loss_chunks") != 1, lambda: pieces.CHUNKED_LOSS),
        (_maybe_widened(subject), lambda: pieces.WIDEN),
    )
    return [make() for needed, make in wanted if needed]


def changes(subject: Subject, config: Any) -> list[str]:
    """Return the lines that change the model after it was loaded, in the order of the trial."""
    facts, lines = subject.spec.facts.model, []
    layers = facts.layers
    if share := subject.number("prune.layers"):
        kept = kept_blocks(layers, share)
        lines.append(f"drop_blocks(model, {_spread(layers, kept)})")
        layers = kept
    if share := subject.number("prune.ffn"):
        lines.append(f"prune_ffn(model, {kept_width(_inner_width(subject, config), share)})")
    if subject.value("prune.heads"):
        groups, size, queries, _ = _head_sizes(subject, config)
        lines.append(f"prune_heads(model, {groups}, {size}, {queries})")
    if subject.value("lora.rank"):
        lines.append("add_adapters(model)")
    if share := subject.number("freeze.layers"):
        lines.append(f"for block in blocks(model)[:{frozen_blocks(layers, share)}]:")
        lines.append("    block.requires_grad_(False)")
    if subject.value("freeze.embeddings") == "yes":
        lines.append("freeze_embeddings(model)")
    lines += _recomputation(subject)
    return lines


def load(subject: Subject, found: Weights, changed: list[str]) -> str:
    """Return the function that makes the model, and its call.

    Args:
        subject: The trial.
        found: Where the weights come from.
        changed: Lines that change it.
    """
    language = subject.workload.objective == "causal_lm"
    kind = "AutoModelForCausalLM" if language else "AutoModelForSequenceClassification"
    attention = str(subject.value("attention"))
    options = f'attn_implementation="{SPELLED.get(attention, attention)}"'
    trust = ", trust_remote_code=True" if found.trust else ""
    lines = [
        "def load():",
        '    """Return the model, changed and on its device."""',
        "    torch.manual_seed(SEED)",
        f'    config = AutoConfig.from_pretrained(HERE / "model"{trust})',
    ]
    if found.weights is not None:
        lines += [
            f"    model = {kind}.from_pretrained(",
            f"        {json.dumps(found.weights)},",
            f"        config=config, dtype=DTYPE, {options},",
            f"        ignore_mismatched_sizes=True{trust},",
            "    ).train()",
        ]
    else:
        made = f"{kind}.from_config(config, dtype=torch.float32, {options}{trust})"
        lines.append(f"    model = {made}.train()")
        if subject.value("precision") == "bf16":
            lines.append("    for p in model.parameters():  # drawn in fp32, then rounded")
            lines.append("        p.data = p.data.to(DTYPE)")
    lines += [f"    {line}" for line in changed]
    if subject.on_cuda:
        lines.append("    return model.to(DEVICE)")
    else:
        lines += [
            "    own_memory(model)",
            *(_WIDENED if _maybe_widened(subject) else []),
            "    return model",
        ]
    lines += ["", "", "model = measured(load)", "owners.append(model)"]
    return "\n" + "\n".join(lines) + "\n"


def _feed_forward(family: str) -> str:
    (shape,) = FEED_FORWARD[family]
    paths = (*shape.inputs, shape.output)
    return f"FFN = {listed(paths)}\n{pieces.PRUNE_FFN.format(setting=shape.settings[0])}"


def _needs_blocks(subject: Subject) -> bool:
    named = ("prune.layers", "lora.rank", "freeze.layers")
    return (
        any(subject.value(name) for name in named)
        or subject.value("checkpointing") != "none"
        or subject.value("freeze.embeddings") == "yes"
    )


_WIDENED = (
    "    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():",
    "        widen(model)",
)


def _maybe_widened(subject: Subject) -> bool:
    """Whether products of 16 bits are computed in fp32 where a CPU has no instructions for them."""
    return subject.value("precision") == "bf16" and not subject.on_cuda


def _recompute(value: str) -> str:
    """Return the function that has blocks computed again."""
    if value != "selective":
        return pieces.RECOMPUTE
    names = [f"torch.ops.aten.{name}.default" for name in EXPENSIVE]
    products = "".join(f"        {name},\n" for name in names)
    return pieces.RECOMPUTE_SELECTED.format(products=products)


def _recomputation(subject: Subject) -> list[str]:
    """Return the calls that have parts of the model computed again."""
    value, lines = str(subject.value("checkpointing")), []
    if value != "none":
        step = f"[::{EVERY[value]}]" if EVERY[value] > 1 else ""
        lines.append(f"recompute(blocks(model){step})")
    if subject.value("recompute.norms") == "yes":
        lines.append("recompute_norms(model)")
    return lines


def _adapters(subject: Subject) -> str:
    transposed = subject.spec.facts.model.family in TRANSPOSED
    rank = int(subject.number("lora.rank"))
    head = "" if subject.workload.objective == "causal_lm" else pieces.NEW_HEAD
    if subject.value("lora.targets") != "all":
        head = pieces.TARGETS.format(paths=listed(target_paths(subject))) + head
    return pieces.ADAPTERS.format(
        kinds="nn.Linear | Conv1D" if transposed else "nn.Linear",
        rank=rank,
        alpha=2 * rank,
        more=", fan_in_fan_out=True" if transposed else "",
        head=head,
    )


def _heads(subject: Subject, config: Any) -> str:
    shape = ATTENTION_HEADS[subject.spec.facts.model.family]
    groups, size, queries, _ = _head_sizes(subject, config)
    owner = f"module.{shape.owner}" if shape.owner else "module"
    lines = [f"        {owner}.{name} = {groups * queries}" for name in shape.counts]
    lines += [f"        {owner}.{name} = {groups * queries * size}" for name in shape.widths]
    if shape.reloads:
        sizes = dict.fromkeys(shape.settings, groups * queries)
        if "num_key_value_heads" in sizes:
            sizes["num_key_value_heads"] = groups
            sizes["head_dim"] = size
        lines += [f"    model.config.{name} = {number}" for name, number in sizes.items()]
    known = (shape.query, shape.key, shape.value, shape.output)
    paths = tuple(path for path in known if path is not None)
    counts = "".join(f"{line}\n" for line in lines)
    return f"HEADS = {listed(paths)}\n{pieces.PRUNE_HEADS.format(counts=counts)}"


def _head_sizes(subject: Subject, config: Any) -> tuple[int, int, int, Attention]:
    """Return the groups that stay, the size of a head, and the queries of each group."""
    facts = subject.spec.facts.model
    size = int(getattr(config, "head_dim", None) or facts.hidden // facts.heads)
    kept = kept_groups(facts.kv_heads, subject.number("prune.heads")) or facts.kv_heads
    return kept, size, facts.heads // facts.kv_heads, ATTENTION_HEADS[facts.family]


def _inner_width(subject: Subject, config: Any) -> int:
    (shape,) = FEED_FORWARD[subject.spec.facts.model.family]
    return int(getattr(config, shape.settings[0], None) or subject.spec.facts.model.ffn)


def _spread(blocks: int, kept: int) -> list[int]:
    """Return the blocks that stay without a measure of importance; see `knobs/depth.py`."""
    from autotune.knobs.depth import spread

    return spread(blocks, kept)
