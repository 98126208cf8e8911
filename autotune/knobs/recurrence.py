"""Structured pruning of recurrent layers: fewer hidden units in LSTMs and GRUs.

A hidden unit has a row for each gate in the matrices that make it, and is read by the recurrent
matrix of its own layer and by whatever comes next: the layer above, the next module, or the linear
head. Which module comes next is the order in which the model holds them; between them there may be
only modules without weights. All layers and directions of one module keep the same number of units.

References:
    Wen et al. 2017, arXiv:1709.05027 (intrinsic sparse structures of LSTMs).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

from torch import nn

from autotune.core.errors import ModelError
from autotune.knobs.architectures import kept_width
from autotune.knobs.importance import run_batches
from autotune.knobs.surgery import configure
from autotune.knobs.units import Slices, Structure, Units, cut_units

if TYPE_CHECKING:
    from torch import Tensor

    from autotune.knobs.stages import Adaptation

GATES: dict[type[nn.RNNBase], int] = {nn.LSTM: 4, nn.GRU: 3}
"""Rows that a hidden unit has in the matrices that make it."""


def recurrent_units(model: nn.Module) -> list[Units]:
    """Return the hidden units of every recurrent layer, direction by direction.

    Raises:
        ModelError: If there is no recurrent layer, or it cannot be told what reads one.
    """
    weighted = [
        (name, module)
        for name, module in model.named_modules()
        if any(True for _ in module.parameters(recurse=False))
    ]
    found: list[Units] = []
    for place, (name, module) in enumerate(weighted):
        if _is_recurrent(module):
            found.extend(_of_module(name, module, _reading(weighted[place + 1 :], name, module)))
    if not found:
        raise ModelError(
            f"{type(model).__name__} has no LSTM or GRU layers", help="set prune.recurrent to 0.0"
        )
    return found


def _of_module(name: str, module: nn.LSTM | nn.GRU, after: list[str]) -> Iterator[Units]:
    """Yield the units of each layer and direction of a module.

    Args:
        name: Of the module.
        module: Of one or more layers.
        after: Names of the matrices that read its output.
    """
    hidden = module.hidden_size
    directions = ("", "_reverse") if module.bidirectional else ("",)
    for layer in range(module.num_layers):
        above = [f"{name}.weight_ih_l{layer + 1}{way}" for way in directions]
        readers = after if layer == module.num_layers - 1 else above
        for place, way in enumerate(directions):
            end = f"_l{layer}{way}"
            made = [f"{name}.weight_ih{end}", f"{name}.weight_hh{end}"]
            biases = [f"{name}.bias_ih{end}", f"{name}.bias_hh{end}"] if module.bias else []
            rows = [
                Slices(tensor=tensor, dim=0, start=gate * hidden)
                for tensor in (*made, *biases)
                for gate in range(GATES[type(module)])
            ]
            outgoing = (
                Slices(tensor=f"{name}.weight_hh{end}", dim=1),
                *(Slices(tensor=reader, dim=1, start=place * hidden) for reader in readers),
            )
            yield Units(
                name=f"{name}{end}",
                count=hidden,
                incoming=tuple(rows),
                outgoing=outgoing,
                factors=(tuple(s for s in rows if s.tensor in made), outgoing),
            )


def _reading(
    following: list[tuple[str, nn.Module]], name: str, module: nn.LSTM | nn.GRU
) -> list[str]:
    """Return the matrices that read the output of a recurrent module."""
    width = module.hidden_size * (2 if module.bidirectional else 1)
    if module.proj_size:
        raise ModelError(
            f"{name} projects its hidden state, which prune.recurrent does not know",
            help="set prune.recurrent to 0.0",
        )
    readers = [(path, reader) for path, reader in following if _width_in(reader) == width]
    if not following or readers[:1] != following[:1] or _is_ambiguous(readers):
        raise ModelError(
            f"it cannot be told what reads the {width} outputs of {name}: it must be the module "
            "that comes next, a recurrent or the only linear one of that width",
            help="set prune.recurrent to 0.0",
        )
    path, reader = readers[0]
    if not _is_recurrent(reader):
        return [f"{path}.weight"]
    return [f"{path}.weight_ih_l0{way}" for way in ("", "_reverse")[: 1 + reader.bidirectional]]


def _is_ambiguous(readers: list[tuple[str, nn.Module]]) -> bool:
    """Whether a linear layer that reads comes with others that might."""
    return isinstance(readers[0][1], nn.Linear) and len(readers) > 1


def _width_in(module: nn.Module) -> int:
    if _is_recurrent(module):
        return module.input_size
    return module.in_features if isinstance(module, nn.Linear) else 0


def _is_recurrent(module: nn.Module) -> TypeGuard[nn.LSTM | nn.GRU]:
    return type(module) in GATES


def _cut(model: nn.Module, kept: Mapping[str, Tensor]) -> None:
    found = recurrent_units(model)
    before, after = found[0].count, len(kept[found[0].name])
    cut_units(model, [(units, kept[units.name]) for units in found])
    if getattr(getattr(model, "config", None), "hidden_size", None) == before:
        configure(model, {"hidden_size": after})


def _activations(state: Adaptation, found: list[Units]) -> list[Tensor]:
    """Return the mean magnitude of each unit's hidden state.

    A module gives those of its last layer only, so what goes into it is run through its layers
    one by one, from a state of zeros.
    """
    heard: dict[str, Tensor] = {}

    def hear(name: str, module: nn.LSTM | nn.GRU) -> Any:
        def note(listened: nn.Module, args: tuple[Any, ...]) -> None:
            states = args[0]
            for layer, single in enumerate(_layers_apart(module)):
                states = single(states)[0]
                data = states.data.float().abs().flatten(0, -2).mean(0)
                parts = data.split(module.hidden_size)
                for way, part in zip(("", "_reverse"), parts, strict=False):
                    key = f"{name}_l{layer}{way}"
                    heard[key] = heard[key] + part if key in heard else part

        return module.register_forward_pre_hook(note)

    hooks = [hear(n, m) for n, m in state.model.named_modules() if _is_recurrent(m)]
    try:
        run_batches(state)
    finally:
        for hook in hooks:
            hook.remove()
    missing = [units.name for units in found if units.name not in heard]
    if missing:
        raise ModelError(
            f"the objective's loss does not run {missing[0]} as a module, so its activations "
            "cannot be measured",
            help="set prune.importance to magnitude or taylor",
        )
    return [heard[units.name] for units in found]


def _layers_apart(module: nn.LSTM | nn.GRU) -> Iterator[nn.LSTM | nn.GRU]:
    """Yield the layers of a module as modules of one layer that share its weights."""
    for layer in range(module.num_layers):
        weight: Tensor = getattr(module, f"weight_ih_l{layer}")
        single = type(module)(
            weight.shape[1],
            module.hidden_size,
            bias=module.bias,
            batch_first=module.batch_first,
            bidirectional=module.bidirectional,
            device="meta",
        )
        for name, _ in list(single.named_parameters()):
            shared: Tensor = getattr(module, name.replace("_l0", f"_l{layer}"))
            setattr(single, name, nn.Parameter(shared.detach(), requires_grad=False))
        yield single.eval()


RECURRENT_UNITS = Structure(
    knob="prune.recurrent",
    find=recurrent_units,
    stay=kept_width,
    cut=_cut,
    activations=_activations,
)
"""The hidden units of recurrent layers; what stays is rounded by `kept_width`."""
