"""Structured pruning of transformers: fewer feed-forward units, fewer attention heads.

What is cut is gone: smaller matrices, gradients, states and activations. The pruned model equals
the model whose cut units are silent. Every layer keeps the same number of units, so the
configuration can say it; which ones, is decided in each layer by their importance
(`knobs/importance.py`). Where the units are, is read off the tables of `knobs/architectures.py`.

References:
    Li et al. 2017, arXiv:1608.08710 (magnitude of whole units);
    Ma et al. 2023, arXiv:2305.11627 (coupled structures of transformers).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

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
from autotune.knobs.units import (
    Slices,
    Structure,
    Units,
    add_silent_units,
    cut_units,
    inputs,
    outputs,
)

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


def feed_forward_units(model: nn.Module) -> list[Units]:
    """Return the inner units of every feed-forward layer.

    Args:
        model: A transformers model of a family in `FEED_FORWARD`.

    Raises:
        ModelError: If the family is unknown or a model has none of the layers of its family.
    """
    found = []
    for name, owner, shape in feed_forward_layers(model):
        output = _dense(owner, shape.output)
        width = dense_weight(output).shape[1]
        incoming = tuple(
            slices
            for path in shape.inputs
            for part in range(shape.parts)
            for slices in outputs(f"{name}.{path}", _dense(owner, path), start=part * width)
        )
        outgoing = inputs(f"{name}.{shape.output}", output)
        into = tuple(slices for slices in incoming if slices.tensor.endswith(".weight"))
        found.append(
            Units(
                name=name,
                count=width,
                incoming=incoming,
                outgoing=outgoing,
                factors=(outgoing, into),
            )
        )
    return _some(found, model, "feed-forward")


def head_units(model: nn.Module) -> list[Units]:
    """Return the key/value groups of every attention layer, each with its query heads.

    Whole groups are units, so the number of queries per key stays.

    Args:
        model: A transformers model of a family in `ATTENTION_HEADS`.

    Raises:
        ModelError: If the family is unknown or a model has none of the layers of its family.
    """
    return [heads.units() for heads in attention_layers(model)]


def fill_heads(model: nn.Module) -> nn.Module:
    """Put silent heads in place of cut ones where a configuration cannot leave heads out.

    Transformers takes the head size of BERT, GPT-2 and others from width and number of heads, so a
    folder with fewer heads would be read as one with larger heads. Heads that are all zero change
    nothing of what is computed.

    Args:
        model: Dense, of a family in `ATTENTION_HEADS`; changed in place.

    Returns:
        The model.
    """
    shape = of_family(ATTENTION_HEADS, model, "prune.heads")
    if shape.reloads:
        return model
    found = attention_layers(model)
    whole = {heads.name: heads.whole() for heads in found}
    units = [heads.units() for heads in found]
    add_silent_units(model, [(each, whole[each.name] - each.count) for each in units])
    for heads in found:
        heads.recount(whole[heads.name])
    configure(model, dict.fromkeys(shape.settings, whole[found[0].name] * found[0].queries))
    return model


def configure(model: nn.Module, sizes: Mapping[str, int]) -> None:
    """Write sizes into the configuration, and into those of parts that keep one of their own."""
    configs = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}
    for config in configs.values():
        for name, size in sizes.items():
            # The head size is read from every configuration, also where it has no default.
            if hasattr(config, name) or name == "head_dim":
                setattr(config, name, size)


def of_family(table: Mapping[str, T], model: nn.Module, knob: str) -> T:
    """Return the entry of a model's family.

    Raises:
        ModelError: If the table has none.
    """
    family = str(getattr(getattr(model, "config", None), "model_type", type(model).__name__))
    if family not in table:
        raise ModelError(
            f"{knob} does not know models of the family '{family}'",
            help=f"leave {knob} at its neutral value; known: {', '.join(sorted(table))}",
        )
    return table[family]


def _cut_feed_forward(model: nn.Module, kept: Mapping[str, Tensor]) -> None:
    found = feed_forward_units(model)
    cut_units(model, [(units, kept[units.name]) for units in found])
    settings = of_family(FEED_FORWARD, model, "prune.ffn")[0].settings
    for units in found:  # where encoder and decoder have an entry each, the decoder's is the last
        setting = settings[-1] if "decoder" in units.name else settings[0]
        configure(model, {setting: len(kept[units.name])})


def _cut_heads(model: nn.Module, kept: Mapping[str, Tensor]) -> None:
    shape = of_family(ATTENTION_HEADS, model, "prune.heads")
    found = attention_layers(model)
    cut_units(model, [(heads.units(), kept[heads.name]) for heads in found])
    for heads in found:
        heads.recount(len(kept[heads.name]))
    groups = len(kept[found[0].name])
    sizes = dict.fromkeys(shape.settings, groups * found[0].queries)
    if "num_key_value_heads" in sizes:
        sizes["num_key_value_heads"] = groups
        sizes["head_dim"] = found[0].size
    configure(model, sizes)


def _whole_groups(groups: int, share: float) -> int:
    count = kept_groups(groups, share)
    if count is None:
        raise ModelError(
            f"cutting {share:g} of {groups} key/value groups leaves no whole number",
            help="choose another value of prune.heads",
        )
    return count


FEED_FORWARDS = Structure(
    knob="prune.ffn", find=feed_forward_units, stay=kept_width, cut=_cut_feed_forward
)
"""The inner width of feed-forward layers; what stays is rounded by `kept_width`."""

HEADS = Structure(knob="prune.heads", find=head_units, stay=_whole_groups, cut=_cut_heads)
"""The key/value groups of attention; without grouped queries, a group is a head."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """One attention layer, opened.

    Attributes:
        name: Of the module below the model.
        owner: The module.
        shape: Where its matrices are.
        groups: Key/value heads.
        queries: Query heads of each.
        size: Width of a head.
    """

    name: str
    owner: nn.Module
    shape: Attention
    groups: int
    queries: int
    size: int

    @classmethod
    def of(cls, name: str, owner: nn.Module, shape: Attention) -> Heads:
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

    def units(self) -> Units:
        """Return the groups of this layer as units."""
        incoming = tuple(slices for part in self._parts() for slices in part)
        bias = getattr(self._inner(), "relative_attention_bias", None)
        if bias is not None:  # T5: one column per head
            name = ".".join(filter(None, (self.name, self.shape.owner, "relative_attention_bias")))
            incoming += (Slices(tensor=f"{name}.weight", dim=1, size=self.queries),)
        path = self.shape.output
        return Units(
            name=self.name,
            count=self.groups,
            incoming=incoming,
            outgoing=inputs(
                f"{self.name}.{path}", _dense(self.owner, path), size=self.size * self.queries
            ),
            factors=tuple(part[:1] for part in self._parts()),
            shared=_stack(self.name) if self.shape.uniform else "",
        )

    def whole(self) -> int:
        """Return the number of groups before any was cut, of a layer as wide as its heads."""
        weight = dense_weight(_dense(self.owner, self.shape.output))
        return weight.shape[0] // self.size // self.queries

    def recount(self, groups: int) -> None:
        """Have the layer say that so many groups are left."""
        inner, heads = self._inner(), groups * self.queries
        for attribute in self.shape.counts:
            setattr(inner, attribute, heads)
        for attribute in self.shape.widths:
            setattr(inner, attribute, heads * self.size)

    def _inner(self) -> nn.Module:
        return self.owner.get_submodule(self.shape.owner)

    def _parts(self) -> list[tuple[Slices, ...]]:
        """Return where query, key and value stand, each with the weight first."""
        shape, size = self.shape, self.size
        if shape.key is None or shape.value is None:
            fused, name = _dense(self.owner, shape.query), f"{self.name}.{shape.query}"
            if shape.interleaved:
                return [outputs(name, fused, size=3 * size)]
            width = self.groups * size
            return [outputs(name, fused, size=size, start=part * width) for part in range(3)]
        return [
            outputs(f"{self.name}.{path}", _dense(self.owner, path), size=size * times)
            for path, times in ((shape.query, self.queries), (shape.key, 1), (shape.value, 1))
        ]


def _stack(name: str) -> str:
    """Return what layers share that must lose the same heads: the stack, and the kind of layer.

    T5 computes its position bias in the first layer of a stack and adds it in all of them.
    """
    return f"{name.partition('.block.')[0]} {name.rpartition('.')[2]}"


def _head_size(inner: Any, shape: Attention, width: int) -> int:
    for attribute in ("head_dim", "head_size", "attention_head_size", "key_value_proj_dim"):
        size = getattr(inner, attribute, None)
        if isinstance(size, int):
            return size
    return width // int(getattr(inner, shape.counts[0]))


def feed_forward_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module, FeedForward]]:
    """Yield the name, the module and the shape of every feed-forward layer.

    Raises:
        ModelError: If the family is unknown.
    """
    shapes = of_family(FEED_FORWARD, model, "prune.ffn")
    for name, module in model.named_modules():
        for shape in shapes:
            if _has(module, (*shape.inputs, shape.output)):
                yield name, module, shape
                break


def attention_layers(model: nn.Module) -> list[Heads]:
    """Return every attention layer.

    Raises:
        ModelError: If the family is unknown, or the model has no layer of its family.
    """
    shape = of_family(ATTENTION_HEADS, model, "prune.heads")
    paths = [p for p in (shape.query, shape.key, shape.value, shape.output) if p is not None]
    found = [
        Heads.of(name, module, shape)
        for name, module in model.named_modules()
        if _has(module, paths)
    ]
    return _some(found, model, "attention")


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


def _some(found: list[T], model: nn.Module, layer: str) -> list[T]:
    if not found:
        raise ModelError(f"{type(model).__name__} has no {layer} layers of the shape of its family")
    return found
