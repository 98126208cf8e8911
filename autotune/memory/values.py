"""What fake tensors still know: values that follow from the data alone.

A fake tensor has a shape and no values, so a program that reads one (`if mask.all():`) cannot be
followed. But much of what programs read follows from the batch, which is there and small: whether
it is padded, how long its longest sequence is. Such tensors carry their real value along, and
operators whose arguments all do are computed for real beside the fake computation.

Of everything else three things are said, which hold for a training that goes well: numbers are
finite, a floating point number that is read (the loss) is 1, and what is handed to numpy (guesses,
to be scored) is 0. A truth value or a count that depends on weights is not guessed.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes

from autotune.memory.rehearsal import CannotRehearse

if TYPE_CHECKING:
    from collections.abc import Callable

MOST_VALUES = 2**18
"""Elements of the largest tensor whose values are carried along."""

_aten = torch.ops.aten
_ATTRIBUTE = "_known_value"
_FROM_NOTHING = frozenset(
    {
        _aten.arange.default,
        _aten.arange.start,
        _aten.arange.start_step,
        _aten.full.default,
        _aten.ones.default,
        _aten.scalar_tensor.default,
        _aten.zeros.default,
    }
)
_KEEPS_UNIFORM = frozenset(
    {
        _aten.all.default,
        _aten.any.default,
        _aten.bitwise_and.Tensor,
        _aten.bitwise_not.default,
        _aten.bitwise_or.Tensor,
        _aten.detach.default,
        _aten.logical_and.default,
        _aten.logical_not.default,
        _aten.logical_or.default,
        _aten.mul.Tensor,
    }
)


def know(fake: Tensor, value: Tensor) -> None:
    """Have a fake tensor carry its real value, if that is small."""
    if value.numel() <= MOST_VALUES:
        setattr(fake, _ATTRIBUTE, value)


def known(tensor: Tensor) -> Tensor | None:
    """Return the real value of a tensor, or None if nothing is known of it."""
    if type(tensor) is Tensor:  # a real one: made outside of the rehearsal, such as a constant
        small = tensor.device.type == "cpu" and tensor.numel() <= MOST_VALUES
        return tensor if small else None
    value: Tensor | None = getattr(tensor, _ATTRIBUTE, None)
    return value


def read_number(tensor: Tensor) -> Any:
    """Return the one number that a tensor holds.

    Raises:
        CannotRehearse: If it depends on weights, and not only on whether training goes well.
    """
    value = known(tensor)
    if value is not None:
        with _disable_current_modes():
            return value.item()
    if tensor.dtype.is_floating_point:
        return 1.0
    what = "a truth value" if tensor.dtype is torch.bool else "a count"
    raise CannotRehearse(f"the model or a knob reads {what} that depends on the weights")


def to_numpy(tensor: Tensor) -> Any:
    """Return a fake tensor's values as a numpy array; zeros where they are not known."""
    value = known(tensor)
    with _disable_current_modes():
        if value is None:
            value = torch.zeros(tensor.shape, dtype=tensor.dtype)
        return value.detach().numpy()


def learn(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
    """Compute for real what an operator gave, if all that went into it is known."""
    tensors = _tensors((*args, *kwargs.values()))
    changes = func._schema.is_mutable  # then the values of what it changes change with it
    if not _may_follow(func, tensors):
        if changes:
            _forget(func, args, kwargs)
        else:
            _learn_finite(func, args, result)
        return
    results = [leaf for leaf in _tensors((result,)) if leaf.numel() <= MOST_VALUES]
    if not (results or changes):
        return
    computed = _tensors((_compute(func, args, kwargs),))
    with _disable_current_modes():
        for fake, value in zip(results, computed, strict=False):
            know(fake, value if value.shape == fake.shape else value.expand(fake.shape))


def compute_shape(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """Return the fake result of an operator whose shape follows from known values, or None."""
    tensors = _tensors(args)
    if not tensors or any(known(tensor) is None for tensor in tensors):
        return None
    value = _compute(func, args, kwargs)
    if not isinstance(value, Tensor):
        return None
    fake = torch.empty(value.shape, dtype=value.dtype, device=tensors[0].device)
    know(fake, value)
    return fake


def places_of(mask: Tensor) -> tuple[Tensor, ...] | None:
    """Return, for a known mask, the indices that select what it selects; None if unknown."""
    value = known(mask)
    if value is None:
        return None
    with _disable_current_modes():
        columns = value.nonzero().unbind(1)
    made = []
    for column in columns:
        fake = torch.empty(column.shape, dtype=column.dtype, device=mask.device)
        know(fake, column)
        made.append(fake)
    return tuple(made)


def _tensors(args: tuple[Any, ...]) -> list[Tensor]:
    """Return the tensors among arguments, also those in lists."""
    found = []
    for argument in args:
        if isinstance(argument, Tensor):
            found.append(argument)
        elif isinstance(argument, list | tuple):
            found += [leaf for leaf in argument if isinstance(leaf, Tensor)]
    return found


def _may_follow(func: Any, tensors: list[Tensor]) -> bool:
    if not tensors:
        return func in _FROM_NOTHING
    for tensor in tensors:
        value = known(tensor)
        if value is None or (_is_uniform(value) and func not in _KEEPS_UNIFORM):
            return False
    return torch.Tag.nondeterministic_seeded not in func.tags


def _forget(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Know no more of what an operator changed."""
    given = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
    for argument in func._schema.arguments:
        if argument.alias_info is not None and argument.alias_info.is_write:
            for tensor in _tensors((given.get(argument.name),)):
                if getattr(tensor, _ATTRIBUTE, None) is not None:
                    delattr(tensor, _ATTRIBUTE)


def _learn_finite(func: Any, args: tuple[Any, ...], result: Any) -> None:
    """Know of a comparison that asks whether numbers are finite that they are."""
    asks = _FINITE.get(func)
    if asks is not None and asks[0](args):
        with _disable_current_modes():
            answer = torch.tensor(asks[1])
            setattr(result, _ATTRIBUTE, answer.expand(result.shape))


def _with_itself(args: tuple[Any, ...]) -> bool:
    return args[0] is args[1]


def _with_infinity(args: tuple[Any, ...]) -> bool:
    return isinstance(args[1], float) and math.isinf(args[1])


def _always(args: tuple[Any, ...]) -> bool:
    return True


_FINITE: dict[Any, tuple[Callable[[tuple[Any, ...]], bool], bool]] = {
    _aten.eq.Tensor: (_with_itself, True),
    _aten.ne.Tensor: (_with_itself, False),
    _aten.eq.Scalar: (_with_infinity, False),
    _aten.ne.Scalar: (_with_infinity, True),
    _aten.isinf.default: (_always, False),
    _aten.isnan.default: (_always, False),
}


def _is_uniform(value: Tensor | None) -> TypeGuard[Tensor]:
    return value is not None and value.numel() > 1 and not any(value.stride())


def _compute(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    def real(item: Any) -> Any:
        if isinstance(item, Tensor):
            value = known(item)
            assert value is not None
            return value[(slice(0, 1),) * value.ndim] if _is_uniform(value) else value
        if isinstance(item, list | tuple):
            return type(item)(real(part) for part in item)
        if isinstance(item, torch.device):
            return torch.device("cpu")
        return item

    options = {name: real(value) for name, value in kwargs.items() if name != "pin_memory"}
    with _disable_current_modes(), torch.no_grad():
        return func(*(real(argument) for argument in args), **options)


def is_fake(tensor: object) -> TypeGuard[FakeTensor]:
    """Whether a tensor has a shape and no values."""
    return isinstance(tensor, FakeTensor)
