"""Operators on fakes that were seen before, without asking torch again.

torch remembers what an operator gives for given shapes, too, but describes its arguments so
thoroughly that this takes most of a rehearsal. Here an argument is its shape, strides, dtype and
device, which is all there is to the plain tensors of a training. Views are not remembered: making
one is as quick as looking it up. Whatever is not plain goes to torch: tensors with known constants,
operators that resize, results whose shape depends on values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager

MOST_KNOWN = 100_000
"""Results that are remembered; a rehearsal of a new model has some hundreds."""

UNKNOWN = object()
"""Stands for the result of an operator that has to be asked for."""

_aten = torch.ops.aten
_RESIZE = frozenset({"resize_", "resize_as_", "set_", "_resize_output_", "as_strided_"})
_VALUES = frozenset(
    {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape, torch.Tag.inplace_view}
)
_PLAIN = (
    *(int, float, bool, str, type(None)),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format),
)


@dataclass(frozen=True, slots=True)
class _Made:
    """A tensor that an operator makes anew."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


class _NotPlain(Exception):
    """An argument or a result that cannot be described by shapes alone."""


_known: dict[tuple[Any, ...], Callable[[FakeTensorMode, tuple[Any, ...]], Any] | None] = {}
_ways: dict[Any, str] = {}


def run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operator on fakes, by what is known of it where that is possible."""
    way = _ways.get(func)
    if way is None:
        way = _ways[func] = _way(func)
    if way == "view":
        return _view(func, args, kwargs)
    if way == "ask":
        return func(*args, **kwargs)
    try:
        key, mode = _key(func, args, kwargs)
    except _NotPlain:
        return func(*args, **kwargs)
    if key in _known:
        make = _known[key]
        return func(*args, **kwargs) if make is None else make(mode, args)
    before = _description(args[0]) if isinstance(args[0], FakeTensor) else None
    result = func(*args, **kwargs)
    if len(_known) >= MOST_KNOWN:
        _known.clear()
    _known[key] = _maker(way, result, args, before)
    return result


def _way(func: Any) -> str:
    """Return how an operator is run: `"view"`, `"change"`, `"make"`, or `"ask"` for neither."""
    name = func._schema.name.removeprefix("aten::")
    if func.namespace != "aten" or name in _RESIZE or _VALUES.intersection(func.tags):
        return "ask"
    if func.is_view:
        return "view"
    if not func._schema.is_mutable:
        return "make"
    return "change" if name.endswith("_") else "ask"


def _view(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    source = args[0]
    if type(source) is not FakeTensor or source.constant is not None:
        return func(*args, **kwargs)
    mode = source.fake_mode
    with in_kernel_invocation_manager(mode):
        made = func(*args, **kwargs)
    if isinstance(made, Tensor):
        return FakeTensor(mode, made, source.fake_device)
    return type(made)(FakeTensor(mode, piece, source.fake_device) for piece in made)


def _key(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], FakeTensorMode]:
    """Return what decides a result, and the mode that its tensors belong to.

    Raises:
        _NotPlain: If an argument is not a plain tensor or number.
    """
    modes: list[FakeTensorMode] = []
    parts: list[Any] = [func]
    for argument in args:
        parts.append(_described(argument, modes))
    for name, argument in kwargs.items():
        parts += (name, _described(argument, modes))
    if not modes:
        raise _NotPlain
    return tuple(parts), modes[0]


def _described(argument: Any, modes: list[FakeTensorMode]) -> Any:
    if type(argument) is FakeTensor:
        if argument.constant is not None or argument.is_sparse:
            raise _NotPlain
        modes.append(argument.fake_mode)
        return _description(argument)
    if isinstance(argument, list | tuple):
        return tuple(_described(part, modes) for part in argument)
    if isinstance(argument, _PLAIN):
        return type(argument), argument
    raise _NotPlain


def _description(tensor: FakeTensor) -> tuple[Any, ...]:
    return (tensor.shape, tensor.stride(), tensor.dtype, tensor.fake_device)


def _maker(
    way: str, result: Any, args: tuple[Any, ...], before: tuple[Any, ...] | None
) -> Callable[[FakeTensorMode, tuple[Any, ...]], Any] | None:
    """Return what gives the same result again; None if that is not known."""
    if way == "change":
        return _changed(result, args, before)
    taken = {t.untyped_storage()._cdata for t in _fakes(args)}
    pieces = result if isinstance(result, tuple | list) else (result,)
    made = [_made(piece, taken) for piece in pieces]
    if any(piece is UNKNOWN for piece in made):
        return None
    if pieces is result:
        kind = type(result)
        return lambda mode, _: kind([_again(mode, piece) for piece in made])
    return lambda mode, _: _again(mode, made[0])


def _changed(
    result: Any, args: tuple[Any, ...], before: tuple[Any, ...] | None
) -> Callable[[FakeTensorMode, tuple[Any, ...]], Any] | None:
    if result is None and before is None:
        return _nothing
    if result is args[0] and _description(result) == before:
        return _itself
    return None


def _nothing(_mode: FakeTensorMode, _args: tuple[Any, ...]) -> None:
    """Return what a list of tensors that change gives."""


def _itself(_mode: FakeTensorMode, args: tuple[Any, ...]) -> Any:
    """Return the tensor that changed."""
    return args[0]


def _fakes(args: tuple[Any, ...]) -> list[FakeTensor]:
    found = []
    for argument in args:
        if isinstance(argument, list | tuple):
            found += _fakes(tuple(argument))
        elif isinstance(argument, FakeTensor):
            found.append(argument)
    return found


def _made(piece: Any, taken: set[int]) -> Any:
    """Return how a result can be made again; `UNKNOWN` if it shares memory, or is no tensor."""
    if piece is None:
        return None
    if type(piece) is not FakeTensor or piece.constant is not None or piece.storage_offset():
        return UNKNOWN
    storage = piece.untyped_storage()
    if storage._cdata in taken or piece.dtype.is_complex or piece.requires_grad:
        return UNKNOWN
    taken.add(storage._cdata)
    made = _Made(tuple(piece.shape), piece.stride(), piece.dtype, piece.fake_device)
    return made if storage.nbytes() == _bytes(made) else UNKNOWN


def _bytes(made: _Made) -> int:
    if 0 in made.shape:
        return 0
    last = sum((size - 1) * step for size, step in zip(made.shape, made.strides, strict=True))
    return (last + 1) * made.dtype.itemsize


def _again(mode: FakeTensorMode, made: _Made | None) -> FakeTensor | None:
    if made is None:
        return None
    with in_kernel_invocation_manager(mode):
        empty = torch.empty_strided(made.shape, made.strides, dtype=made.dtype, device="meta")
    return FakeTensor(mode, empty, made.device)
