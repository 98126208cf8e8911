"""Structured pruning: fewer units in feed-forward layers, fewer heads in attention.

What is cut is gone: smaller matrices, gradients, states and activations. The pruned model equals
the model whose cut units give zero. Every layer keeps the same number of units, so the
configuration can say it; which ones, is decided in each layer by the magnitude of the weights into
and out of a unit.

References:
    Li et al. 2017, arXiv:1608.08710 (magnitude of whole units);
    Ma et al. 2023, arXiv:2305.11627 (coupled structures of transformers).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from autotune.core.errors import ModelError
from autotune.knobs.architectures import (
    ATTENTION_HEADS,
    FEED_FORWARD,
    Attention,
    FeedForward,
    kept_groups,
    kept_width,
)
from autotune.knobs.blocks import dense_weight, is_dense

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

Kept = dict[str, "Tensor"]
"""Indices of the units or heads that stayed, by the name of the module that owns them."""


def prune_feed_forward(model: nn.Module, share: float) -> Kept:
    """Cut a share of the inner width of every feed-forward layer, in place.

    Args:
        model: A transformers model of a family in `FEED_FORWARD`.
        share: Part of the units to cut; what stays is rounded by `kept_width`.

    Returns:
        The units that stayed.

    Raises:
        ModelError: If the family is unknown or a model has none of the layers of its family.
    """
    shapes = _of_family(FEED_FORWARD, model, "prune.ffn")
    kept: Kept = {}
    for name, owner, shape in _feed_forwards(model, shapes):
        inputs = [_dense(owner, path) for path in shape.inputs]
        output = _dense(owner, shape.output)
        strength = dense_weight(output).float().norm(dim=0)
        strength *= sum(dense_weight(layer).float().norm(dim=1) for layer in inputs)
        units = strength.topk(kept_width(len(strength), share)).indices.sort().values
        for layer in inputs:
            cut_outputs(layer, units)
        cut_inputs(output, units)
        kept[name] = units
    width = len(_any(kept, model, "feed-forward"))
    for shape in shapes:
        _configure(model, dict.fromkeys(shape.settings, width))
    return kept


def prune_heads(model: nn.Module, share: float) -> Kept:
    """Cut a share of the key/value groups of every attention layer, with their query heads.

    Whole groups go, so the number of queries per key stays.

    Args:
        model: A transformers model of a family in `ATTENTION_HEADS`.
        share: Part of the groups to cut; must leave a whole number of them.

    Returns:
        The groups that stayed; without grouped queries, a group is a head.

    Raises:
        ModelError: If the family is unknown, a model has none of the layers of its family, or the
            share does not leave whole groups.
    """
    shape = _of_family(ATTENTION_HEADS, model, "prune.heads")
    found = [_Heads.of(name, owner, shape) for name, owner in _attentions(model, shape)]
    strengths = _shared_strengths(found) if shape.uniform else {h.name: h.strength() for h in found}
    kept: Kept = {}
    for heads in found:
        count = kept_groups(heads.groups, share)
        if count is None:
            raise ModelError(
                f"cutting {share:g} of {heads.groups} key/value groups leaves no whole number",
                help="choose another value of prune.heads",
            )
        groups = strengths[heads.name].topk(count).indices.sort().values
        heads.cut(groups)
        kept[heads.name] = groups
    groups_left = len(_any(kept, model, "attention"))
    sizes = dict.fromkeys(shape.settings, groups_left * found[0].queries)
    if "num_key_value_heads" in sizes:
        sizes["num_key_value_heads"] = groups_left
        sizes["head_dim"] = found[0].size
    _configure(model, sizes)
    return kept


def cut_outputs(layer: nn.Linear | Conv1D, units: Tensor) -> None:
    """Keep the given outputs of a dense layer, in new tensors of their own."""
    _set_weight(layer, dense_weight(layer).detach()[units])
    if layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias.detach()[units], layer.bias.requires_grad)


def cut_inputs(layer: nn.Linear | Conv1D, units: Tensor) -> None:
    """Keep the given inputs of a dense layer, in new tensors of their own."""
    _set_weight(layer, dense_weight(layer).detach()[:, units])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Heads:
    """One attention layer, opened."""

    name: str
    owner: nn.Module
    shape: Attention
    groups: int
    queries: int
    size: int

    @classmethod
    def of(cls, name: str, owner: nn.Module, shape: Attention) -> _Heads:
        """Read the number of groups, queries per group and the head size off a layer."""
        inner = owner.get_submodule(shape.owner)
        width = dense_weight(_dense(owner, shape.output)).shape[1]
        size = _head_size(inner, shape, width)
        keys = width if shape.key is None else dense_weight(_dense(owner, shape.key)).shape[0]
        groups = keys // size
        return cls(
            name=name,
            owner=owner,
            shape=shape,
            groups=groups,
            queries=width // size // groups,
            size=size,
        )

    def strength(self) -> Tensor:
        """Return the magnitude of each group: the product over query, key and value."""
        if self.shape.key is None or self.shape.value is None:
            fused = dense_weight(_dense(self.owner, self.shape.query)).float()
            parts = list(fused.chunk(3))
        else:
            names = (self.shape.query, self.shape.key, self.shape.value)
            parts = [dense_weight(_dense(self.owner, name)).float() for name in names]
        norms = [part.reshape(self.groups, -1).norm(dim=1) for part in parts]
        return torch.stack(norms).prod(0)

    def cut(self, groups: Tensor) -> None:
        """Keep the given groups."""
        shape, owner = self.shape, self.owner
        keys = _rows(groups, self.size)
        queries = _rows(groups, self.size * self.queries)
        if shape.key is None or shape.value is None:
            width = self.groups * self.size
            cut_outputs(
                _dense(owner, shape.query), torch.cat([keys + part * width for part in range(3)])
            )
        else:
            cut_outputs(_dense(owner, shape.query), queries)
            cut_outputs(_dense(owner, shape.key), keys)
            cut_outputs(_dense(owner, shape.value), keys)
        cut_inputs(_dense(owner, shape.output), queries)
        inner: Any = owner.get_submodule(shape.owner)
        for attribute in shape.counts:
            setattr(inner, attribute, len(groups) * self.queries)
        for attribute in shape.widths:
            setattr(inner, attribute, len(queries))
        bias = getattr(inner, "relative_attention_bias", None)
        if bias is not None:  # T5: one column per head
            heads = _rows(groups, self.queries)
            bias.weight = nn.Parameter(bias.weight.detach()[:, heads], bias.weight.requires_grad)
            bias.embedding_dim = len(heads)


def _shared_strengths(found: list[_Heads]) -> dict[str, Tensor]:
    """Add up strengths over the layers of a stack, which must lose the same heads.

    T5 computes its position bias in the first layer of a stack and adds it in all of them.
    """
    total: dict[tuple[str, str], Tensor] = {}
    keys = {heads.name: _stack(heads.name) for heads in found}
    for heads in found:
        strength = heads.strength()
        share = strength / strength.sum()
        key = keys[heads.name]
        total[key] = total[key] + share if key in total else share
    return {name: total[key] for name, key in keys.items()}


def _stack(name: str) -> tuple[str, str]:
    return name.partition(".block.")[0], name.rpartition(".")[2]


def _head_size(inner: Any, shape: Attention, width: int) -> int:
    for attribute in ("head_dim", "attention_head_size", "key_value_proj_dim"):
        size = getattr(inner, attribute, None)
        if isinstance(size, int):
            return size
    return width // int(getattr(inner, shape.counts[0]))


def _of_family(table: Mapping[str, T], model: nn.Module, knob: str) -> T:
    family = str(getattr(getattr(model, "config", None), "model_type", type(model).__name__))
    if family not in table:
        raise ModelError(
            f"{knob} does not know models of the family '{family}'",
            help=f"leave {knob} at its neutral value; known: {', '.join(sorted(table))}",
        )
    return table[family]


def _feed_forwards(
    model: nn.Module, shapes: tuple[FeedForward, ...]
) -> Iterator[tuple[str, nn.Module, FeedForward]]:
    for name, module in model.named_modules():
        for shape in shapes:
            if _has(module, (*shape.inputs, shape.output)):
                yield name, module, shape
                break


def _attentions(model: nn.Module, shape: Attention) -> Iterator[tuple[str, nn.Module]]:
    names = (shape.query, shape.key, shape.value, shape.output)
    for name, module in model.named_modules():
        if _has(module, [path for path in names if path is not None]):
            yield name, module


def _has(owner: nn.Module, paths: tuple[str, ...] | list[str]) -> bool:
    for path in paths:
        module: Any = owner
        for attribute in path.split("."):
            module = getattr(module, attribute, None)
        if not (isinstance(module, nn.Module) and is_dense(module)):
            return False
    return True


def _dense(owner: nn.Module, path: str) -> nn.Linear | Conv1D:
    layer = owner.get_submodule(path)
    if not is_dense(layer):
        raise TypeError(f"{path} is a {type(layer).__name__}, not a dense layer")
    return layer


def _set_weight(layer: nn.Linear | Conv1D, weight: Tensor) -> None:
    """Give a dense layer a weight `(out, in)` and the sizes that go with it."""
    trains = layer.weight.requires_grad
    if isinstance(layer, Conv1D):
        layer.weight = nn.Parameter(weight.t().clone(memory_format=torch.contiguous_format), trains)
        layer.nf, layer.nx = weight.shape
    else:
        layer.weight = nn.Parameter(weight.contiguous(), trains)
        layer.out_features, layer.in_features = weight.shape


def _rows(groups: Tensor, size: int) -> Tensor:
    """Return the rows of the given groups, of `size` rows each."""
    return (groups[:, None] * size + torch.arange(size, device=groups.device)).flatten()


def _any(kept: Kept, model: nn.Module, layer: str) -> Tensor:
    if not kept:
        raise ModelError(f"{type(model).__name__} has no {layer} layers of the shape of its family")
    return next(iter(kept.values()))


def _configure(model: nn.Module, sizes: Mapping[str, int]) -> None:
    """Write sizes into the configuration, and into those of parts that keep one of their own."""
    configs = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}
    for config in configs.values():
        for name, size in sizes.items():
            # The head size is read from every configuration, also where it has no default.
            if hasattr(config, name) or name == "head_dim":
                setattr(config, name, size)
