"""One stage out of a whole model: some of its blocks, and what runs before or after all of them.

What runs before the blocks is found by running the model until its first block is called: modules
that have given something by then are before, all others that are no blocks come after. No weights
are moved: those that the stage does not own are replaced by empty ones, so that every module stays
where the model's code looks for it.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from autotune.core.errors import ModelError
from autotune.knobs.blocks import transformers_base
from autotune.knobs.depth import Stack, drop_blocks, find_stacks
from autotune.knobs.importance import entering, leaving

_HELP = "set layout.pipeline to 1"


class Left(Exception):
    """A forward pass is over, on this stage, after its last block; not an error.

    Args:
        states: What the block gave.
    """

    def __init__(self, states: Tensor) -> None:
        super().__init__("a forward pass went on to another stage")
        self._states: Tensor | None = states

    def take(self) -> Tensor:
        """Return what the block gave, and let go of whatever the forward pass had in its hands."""
        assert self._states is not None
        states, self._states = self._states, None
        traceback.clear_frames(self.__traceback__)  # typed too narrowly; those that run are passed
        self.__traceback__ = None
        return states


class Edge(nn.Module):
    """The first or the last block of a stage, or both.

    Args:
        block: What computes.
        receive: Returns hidden states in place of those that it is given; None to take these.
        leaves: Whether the forward pass ends here, with `Left`.
    """

    def __init__(
        self, block: nn.Module, receive: Callable[[Tensor], Tensor] | None, *, leaves: bool
    ) -> None:
        super().__init__()
        self.block = block
        self.receive = receive
        self.leaves = leaves

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the block, which models ask for what kind it is."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("block"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the block on what was received, and maybe leave."""
        states = entering(args, kwargs)
        if self.receive is not None:
            states = self.receive(states)
            if args:
                args = (states, *args[1:])
            else:
                kwargs["hidden_states"] = states
        output = self.block(*args, **kwargs)
        if not self.leaves:
            return output
        given = leaving(output)
        if given.shape != states.shape or given.dtype != states.dtype:
            raise ModelError(
                f"{type(self.block).__name__} turns hidden states {tuple(states.shape)} in "
                f"{states.dtype} into {tuple(given.shape)} in {given.dtype}, and stages hand on "
                "tensors of one kind",
                help=_HELP,
            )
        raise Left(given)


@dataclass(frozen=True, slots=True, kw_only=True)
class Owned:
    """A parameter of the whole model.

    Attributes:
        stages: Those that keep it, the first one first; several if the model uses it twice.
        trains: Whether it needs a gradient.
        shape: Of the whole parameter.
        dtype: Of its values.
        kept: It, if this stage keeps it.
    """

    stages: tuple[int, ...]
    trains: bool
    shape: torch.Size
    dtype: torch.dtype
    kept: nn.Parameter | None


def around_blocks(model: nn.Module) -> list[str]:
    """Return the names of the modules of a stage that its blocks are in, the outermost first."""
    edge = next(name for name, module in model.named_modules() if isinstance(module, Edge))
    parts = edge.split(".")[:-2]  # of the list, and in it
    return [".".join(parts[:depth]) for depth in range(len(parts) + 1)]


def cut(
    model: nn.Module, index: int, stages: int, receive: Callable[[Tensor], Tensor]
) -> dict[str, Owned]:
    """Leave of a model what one stage has of it; changed in place.

    Args:
        model: Whole; of a family whose blocks are one stack.
        index: Number of the stage.
        stages: How many there are.
        receive: Returns the hidden states of the stage before, given some of their shape and dtype.

    Returns:
        Every parameter of the whole model, by its name there.

    Raises:
        ModelError: If the model cannot be split.
    """
    stack = _only_stack(model)
    before = _run_before(model, stack.blocks[0])
    homes = _homes(model, stack, before, stages)
    owned = _owned(model, homes, index)
    for name, module in model.named_modules():
        if homes.get(name, index) != index:
            _drop_weights(module)
    if index > 0:
        for name, zeros in before.items():
            if any(True for _ in model.get_submodule(name).parameters()):
                vars(model.get_submodule(name))["forward"] = zeros
    first, end = (len(stack.blocks) * i // stages for i in (index, index + 1))
    gone = [n for n in range(len(stack.blocks)) if not first <= n < end]
    drop_blocks(model, {stack.name: gone})
    blocks = model.get_submodule(stack.name)
    assert isinstance(blocks, nn.ModuleList)
    if index > 0:
        blocks[0] = Edge(blocks[0], receive, leaves=False)
    if index < stages - 1:
        blocks[-1] = Edge(blocks[-1], None, leaves=True)
    return owned


def _only_stack(model: nn.Module) -> Stack:
    stacks = find_stacks(model)
    if len(stacks) > 1:
        raise ModelError(
            f"{type(model).__name__} has {len(stacks)} stacks of blocks, and stages hand on the "
            "hidden states of one",
            help=_HELP,
        )
    return stacks[0]


def _run_before(model: nn.Module, first: nn.Module) -> dict[str, partial[Tensor]]:
    """Return what has run when the first block is called, outermost modules only.

    Returns:
        By name, what gives zeros of the shape that the module gives.
    """
    found: dict[str, partial[Tensor]] = {}

    def note(name: str, module: nn.Module, args: Any, output: Any) -> None:
        for inner in [n for n in found if n.startswith(f"{name}.")]:
            del found[inner]
        given = output if isinstance(output, Tensor) else torch.zeros(0, device=device)
        found[name] = partial(_zeros, given.shape[-1], given.dtype)

    def stop(block: nn.Module, args: Any, kwargs: Any) -> None:
        raise Left(entering(args, kwargs))

    device = next(model.parameters()).device
    hooks = [
        module.register_forward_hook(partial(note, name)) for name, module in model.named_modules()
    ]
    hooks.append(first.register_forward_pre_hook(stop, with_kwargs=True))
    try:
        with torch.no_grad(), _without_dropout(model):
            base = transformers_base(model, way_out=_HELP)
            base(input_ids=torch.ones(1, 2, dtype=torch.long, device=device))
    except Left:
        return found
    finally:
        for hook in hooks:
            hook.remove()
    raise ModelError(f"{type(model).__name__} does not call its blocks", help=_HELP)


@contextmanager
def _without_dropout(model: nn.Module) -> Iterator[None]:
    """Leave the generators of random numbers alone meanwhile."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _zeros(width: int, dtype: torch.dtype, *args: Any, **kwargs: Any) -> Tensor:
    """Return zeros `(sequences, tokens, width)` for tokens or hidden states."""
    given = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.ndim > 1]
    return torch.zeros(*given[0].shape[:2], width, dtype=dtype, device=given[0].device)


def _homes(
    model: nn.Module, stack: Stack, before: Mapping[str, Any], stages: int
) -> dict[str, int]:
    """Return the stage that each module with weights of its own belongs to, by name."""
    count = len(stack.blocks)
    starts = [count * stage // stages for stage in range(stages)]
    homes: dict[str, int] = {}
    for name, module in model.named_modules():
        if not any(p is not None for p in module._parameters.values()):
            continue
        if name.startswith(f"{stack.name}."):
            number = int(name.removeprefix(f"{stack.name}.").split(".")[0])
            homes[name] = max(stage for stage in range(stages) if starts[stage] <= number)
        elif any(name == given or name.startswith(f"{given}.") for given in before):
            homes[name] = 0
        elif not name or stack.name.startswith(f"{name}."):
            raise ModelError(
                f"{type(module).__name__} has weights of its own around its blocks, which no stage "
                "could keep alone",
                help=_HELP,
            )
        else:
            homes[name] = stages - 1
    return homes


def _owned(model: nn.Module, homes: Mapping[str, int], index: int) -> dict[str, Owned]:
    """Say of every parameter which stages keep it."""
    keepers: dict[int, set[int]] = {}
    for name, home in homes.items():
        for parameter in model.get_submodule(name)._parameters.values():
            keepers.setdefault(id(parameter), set()).add(home)
    return {
        name: Owned(
            stages=tuple(sorted(keepers[id(parameter)])),
            trains=parameter.requires_grad,
            shape=parameter.shape,
            dtype=parameter.dtype,
            kept=parameter if index in keepers[id(parameter)] else None,
        )
        for name, parameter in model.named_parameters()
    }


def _drop_weights(module: nn.Module) -> None:
    """Leave empty parameters, which say that they train as before: an optimizer has some at all."""
    for name, parameter in module._parameters.items():
        if parameter is not None:
            empty = torch.empty(0, dtype=parameter.dtype, device=parameter.device)
            module._parameters[name] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
