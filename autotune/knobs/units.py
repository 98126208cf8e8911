"""Units of a layer, and where each of them stands in which tensor: what can be cut as a whole.

An inner feature of a feed-forward layer, a group of attention heads and a cell of a recurrent layer
are alike in this: a few rows of some tensors make the unit, a few columns of others read it.
`Slices` says where they are. Everything that pruning does to units is written once, over slices:
measuring them, silencing them and cutting them out. A model whose units are cut out equals the one
where they are silent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

if TYPE_CHECKING:
    from torch import Tensor

    from autotune.knobs.stages import Adaptation

T = TypeVar("T")

Kept = dict[str, "Tensor"]
"""Indices of the units that stayed, by the name of the layer that has them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slices:
    """Where the units of a layer stand in one tensor.

    Attributes:
        tensor: Full name of the parameter.
        dim: The dimension along which units are counted.
        size: Entries of that dimension that belong to one unit, next to each other.
        start: Where the first unit begins; other than 0 if a tensor holds several kinds.
    """

    tensor: str
    dim: int
    size: int = 1
    start: int = 0

    def places(self, units: Tensor) -> Tensor:
        """Return the entries of the given units along the dimension."""
        steps = torch.arange(self.size, device=units.device)
        return (self.start + units[:, None] * self.size + steps).flatten()

    def of(self, tensor: Tensor, count: int) -> Tensor:
        """Return what belongs to each of `count` units, as `(count, values of a unit)`."""
        part = tensor.narrow(self.dim, self.start, count * self.size)
        return part.movedim(self.dim, 0).reshape(count, -1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Units:
    """The units of one layer.

    Attributes:
        name: Of the layer.
        count: How many there are.
        incoming: What makes a unit, biases included.
        outgoing: What reads it; a unit is silent if this is zero.
        factors: The magnitude of a unit is the product over these of the sum of norms in each.
        shared: Layers with the same name here must lose the same units; empty if on its own.
    """

    name: str
    count: int
    incoming: tuple[Slices, ...]
    outgoing: tuple[Slices, ...]
    factors: tuple[tuple[Slices, ...], ...]
    shared: str = ""

    @property
    def slices(self) -> tuple[Slices, ...]:
        """Everything that belongs to a unit."""
        return (*self.incoming, *self.outgoing)


@dataclass(frozen=True, slots=True, kw_only=True)
class Structure:
    """A kind of units that a knob prunes.

    Attributes:
        knob: Name of the knob.
        find: The units of every layer of a model. Raises `ModelError` if it has none.
        stay: How many of so many units stay when a share goes. Raises `ModelError` if none can.
        cut: Leaves the given units only, in place, and has the configuration say so.
        activations: The mean magnitude of each unit's activation, layer by layer, while batches
            are run; None for what `importance.activations` hears at the layers that read a unit.
    """

    knob: str
    find: Callable[[nn.Module], list[Units]]
    stay: Callable[[int, float], int]
    cut: Callable[[nn.Module, Mapping[str, Tensor]], None]
    activations: Callable[[Adaptation, list[Units]], list[Tensor]] | None = None


def outputs(
    name: str, layer: nn.Linear | Conv1D, *, size: int = 1, start: int = 0
) -> tuple[Slices, ...]:
    """Return where units stand in the outputs of a dense layer: its weight, then its bias."""
    dim = 1 if isinstance(layer, Conv1D) else 0
    weight = Slices(tensor=f"{name}.weight", dim=dim, size=size, start=start)
    if layer.bias is None:
        return (weight,)
    return (weight, Slices(tensor=f"{name}.bias", dim=0, size=size, start=start))


def inputs(
    name: str, layer: nn.Linear | Conv1D, *, size: int = 1, start: int = 0
) -> tuple[Slices, ...]:
    """Return where units stand in the inputs of a dense layer."""
    dim = 0 if isinstance(layer, Conv1D) else 1
    return (Slices(tensor=f"{name}.weight", dim=dim, size=size, start=start),)


def magnitude(model: nn.Module, units: Units) -> Tensor:
    """Return the magnitude of the weights of each unit, `(count,)` in fp32."""
    total = torch.ones(())
    for factor in units.factors:
        norms = [
            found.of(model.get_parameter(found.tensor).detach(), units.count).float().norm(dim=1)
            for found in factor
        ]
        total = total.to(norms[0].device) * sum(norms[1:], start=norms[0])
    return total


@torch.no_grad()
def silence(model: nn.Module, units: Units, gone: Tensor) -> None:
    """Set everything that belongs to the given units to zero, in place.

    What makes them is zero as well as what reads them, so no gradient reaches them either.
    """
    for found in units.slices:
        parameter = model.get_parameter(found.tensor)
        parameter.index_fill_(found.dim, found.places(gone).to(parameter.device), 0.0)


def cut_units(model: nn.Module, cuts: Iterable[tuple[Units, Tensor]]) -> None:
    """Keep the given units of each layer, in new tensors of their own.

    Several layers may stand next to each other in one tensor, so all of them are cut together.
    """

    def keep(old: Tensor, dim: int, parts: list[tuple[Slices, Tensor]]) -> Tensor:
        places = torch.cat([slices.places(kept) for slices, kept in parts])
        return old.index_select(dim, places.to(old.device))

    _replace(model, cuts, keep)


def add_silent_units(model: nn.Module, additions: Iterable[tuple[Units, int]]) -> None:
    """Give each layer more units, all zero, behind the others: it computes the same.

    Whatever stands along a dimension that has units must belong to units.
    """

    def widen(old: Tensor, dim: int, parts: list[tuple[Slices, tuple[int, int]]]) -> Tensor:
        pieces = []
        for slices, (count, more) in parts:
            pieces.append(old.narrow(dim, slices.start, count * slices.size))
            shape = list(old.shape)
            shape[dim] = more * slices.size
            pieces.append(old.new_zeros(shape))
        return torch.cat(pieces, dim)

    _replace(model, ((units, (units.count, more)) for units, more in additions), widen)


def _replace(
    model: nn.Module,
    changes: Iterable[tuple[Units, T]],
    change: Callable[[Tensor, int, list[tuple[Slices, T]]], Tensor],
) -> None:
    """Put other tensors in place of those that hold units; `change` gets slices in their order."""
    found: dict[tuple[str, int], list[tuple[Slices, T]]] = {}
    for units, what in changes:
        for each in units.slices:
            found.setdefault((each.tensor, each.dim), []).append((each, what))
    changed: dict[str, nn.Module] = {}
    for (name, dim), parts in found.items():
        owner_name, _, attribute = name.rpartition(".")
        owner = changed.setdefault(owner_name, model.get_submodule(owner_name))
        old = model.get_parameter(name)
        new = change(old.detach(), dim, sorted(parts, key=lambda part: part[0].start))
        setattr(owner, attribute, nn.Parameter(new, old.requires_grad))
    for owner in changed.values():
        _resize(owner)


def _resize(module: nn.Module) -> None:
    """Have a module say the sizes of its tensors."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, Conv1D):
        module.nx, module.nf = module.weight.shape
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = module.weight.shape
    elif isinstance(module, nn.RNNBase):
        first: Tensor = module.weight_ih_l0  # type: ignore[assignment]  # a parameter of every layer
        module.input_size = first.shape[1]
        module.hidden_size = module.get_parameter("weight_hh_l0").shape[1]
        module.flatten_parameters()
