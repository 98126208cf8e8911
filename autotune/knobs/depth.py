"""Dropping whole blocks: a shallower model out of the blocks of a deep one.

Which blocks stay is decided stack by stack: evenly spread, or by importance. The first and the last
block always stay (of a single one, the first): they translate from and to the embeddings, and the
first of T5 holds the position bias of its stack. Blocks are counted anew, as their caches and
transformers' configuration do, so the shallow model loads like any other.

References:
    Fan et al. 2019, arXiv:1909.11556 (dropping every other layer);
    Shleifer and Rush 2020, arXiv:2010.13002 (evenly spread layers as a student);
    Men et al. 2024, arXiv:2403.03853 (by importance).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from autotune.core.errors import ModelError
from autotune.knobs.architectures import BLOCKS, kept_blocks
from autotune.knobs.importance import block_scores, entering, with_states
from autotune.knobs.surgery import configure, of_family

if TYPE_CHECKING:
    from autotune.knobs.stages import Adaptation

PER_BLOCK = ("layer_types", "no_rope_layers", "attention_layers")
"""Entries of configurations that say something of each block."""

_NUMBERS = ("layer_idx", "layer_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """Blocks on top of each other: those of an encoder, or of a decoder.

    Attributes:
        name: Full name of their list.
        blocks: Their modules, from the first on.
        setting: Entry of the configuration that counts them.
    """

    name: str
    blocks: Sequence[nn.Module]
    setting: str


def find_stacks(model: nn.Module) -> list[Stack]:
    """Return the stacks of a transformers model of a family in `BLOCKS`.

    Raises:
        ModelError: If the family is unknown, or the model has no blocks of its kind.
    """
    settings = of_family(BLOCKS, model, "prune.layers")
    stacks = [
        Stack(
            name=name,
            blocks=list(module),
            setting=settings[-1] if "decoder" in name else settings[0],
        )
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) and all(map(_is_block, module))
    ]
    if not stacks:
        raise ModelError(
            f"{type(model).__name__} has no blocks that transformers marks as such",
            help="set prune.layers to 0.0",
        )
    return stacks


def choose_blocks(state: Adaptation, share: float) -> dict[str, list[int]]:
    """Choose which blocks go.

    Args:
        state: The model, and what decides.
        share: Part of the blocks of each stack, rounded to whole ones; one always stays.

    Returns:
        The numbers of the blocks that go, the least important first, by name of the stack.

    Raises:
        ModelError: If the share does not amount to a block in any stack, or the blocks cannot be
            measured.
    """
    model = state.model
    if getattr(getattr(model, "config", None), "scale_attn_by_inverse_layer_idx", False):
        raise ModelError(
            "the model scales attention by the number of each block, and numbers change when "
            "blocks go",
            help="set prune.layers to 0.0",
        )
    stacks = find_stacks(model)
    counts = {s.name: max(1, kept_blocks(len(s.blocks), share)) for s in stacks}
    if all(counts[stack.name] == len(stack.blocks) for stack in stacks):
        depths = " and ".join(str(len(stack.blocks)) for stack in stacks)
        raise ModelError(
            f"dropping {share:g} of {depths} blocks drops none",
            help="set prune.layers to a greater share, or to 0.0",
        )
    if state.importance == "magnitude":
        return {
            stack.name: _others(spread(len(stack.blocks), counts[stack.name]), len(stack.blocks))
            for stack in stacks
        }
    scores = block_scores(state, [block for stack in stacks for block in stack.blocks]).tolist()
    gone = {}
    for stack in stacks:
        of_stack = [scores.pop(0) for _ in stack.blocks]
        gone[stack.name] = least_important(of_stack, counts[stack.name])
    return gone


def spread(blocks: int, kept: int) -> list[int]:
    """Return the numbers of `kept` of `blocks` blocks, evenly spread from the first to the last."""
    if kept == 1:
        return [0]
    return [(2 * i * (blocks - 1) + kept - 1) // (2 * (kept - 1)) for i in range(kept)]


def least_important(scores: Sequence[float], kept: int) -> list[int]:
    """Return the blocks that go, the least important first, so that `kept` stay.

    The first and the last one are not among them, unless only one stays: that is the first.
    """
    last = len(scores) - 1
    inner = sorted(range(1, last), key=lambda number: scores[number])
    return [*inner, last][: len(scores) - kept]


def drop_blocks(model: nn.Module, gone: Mapping[str, Sequence[int]]) -> None:
    """Drop blocks, in place, and have the configuration say so.

    Args:
        model: What `find_stacks` understands.
        gone: Numbers of blocks by name of the stack.
    """
    stacks = find_stacks(model)
    for stack in stacks:
        kept = [n for n in range(len(stack.blocks)) if n not in set(gone[stack.name])]
        parent, _, attribute = stack.name.rpartition(".")
        blocks = nn.ModuleList(stack.blocks[number] for number in kept)
        blocks.train(model.get_submodule(stack.name).training)
        setattr(model.get_submodule(parent), attribute, blocks)
        for number, block in enumerate(blocks):
            _renumber(block, number)
        if len(stacks) == 1:
            _pick_settings(model, kept, len(stack.blocks))
        configure(model, {stack.setting: len(kept)})
    for stack in stacks:
        _configure_part(model, stack, len(stack.blocks) - len(gone[stack.name]))


def pass_by(block: nn.Module) -> None:
    """Have a block hand on the hidden states it gets from when `passed_by` is set on it."""
    vars(block)["passed_by"] = False
    block.register_forward_hook(_hand_on, with_kwargs=True)


def _is_block(module: nn.Module) -> bool:
    """Whether a module is a block, and not a convolution in front of them, marked alike."""
    return isinstance(module, GradientCheckpointingLayer) and any(
        isinstance(inner, nn.Linear | Conv1D) for inner in module.modules()
    )


def _hand_on(block: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
    return with_states(output, entering(args, kwargs)) if vars(block)["passed_by"] else output


def _others(kept: Sequence[int], count: int) -> list[int]:
    """Return the numbers below `count` that are not kept, the deepest first."""
    return [number for number in reversed(range(count)) if number not in set(kept)]


def _renumber(block: nn.Module, number: int) -> None:
    for module in block.modules():
        for attribute in _NUMBERS:
            if isinstance(getattr(module, attribute, None), int):
                setattr(module, attribute, number)


def _pick_settings(model: nn.Module, kept: Sequence[int], count: int) -> None:
    """Leave what configurations say of each block for those that stayed."""
    configs: dict[int, Any] = {
        id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None
    }
    for config in configs.values():
        for name in PER_BLOCK:
            listed = getattr(config, name, None)
            if isinstance(listed, list) and len(listed) == count:
                setattr(config, name, [listed[number] for number in kept])
        if hasattr(config, "attention_types"):  # GPT-Neo: the list again, as repeated patterns
            config.attention_types = [[list(config.attention_layers), 1]]


def _configure_part(model: nn.Module, stack: Stack, count: int) -> None:
    """Have the configuration of an encoder or decoder say its own depth, if it has one.

    T5's parts have copies of the configuration, where one entry counts the blocks of either.
    """
    parent = model.get_submodule(stack.name.rpartition(".")[0])
    own: Any = getattr(parent, "config", None)
    whole: Any = getattr(model, "config", None)
    if own is not None and own is not whole:
        setattr(own, of_family(BLOCKS, model, "prune.layers")[0], count)
