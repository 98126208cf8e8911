"""Stand-ins for weights and data, and the surroundings in which trials run on them unchanged.

A trial is ordinary code: it moves modules to a device, makes generators, hands results to numpy.
Fake tensors cannot do all of that by themselves. `surroundings` mends what is missing, for as long
as a rehearsal takes: each entry of its table stands for one thing that a trial may do.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    disable_fake_tensor_cache,
)
from torch.utils._python_dispatch import _disable_current_modes

from autotune.knobs.stages import DataPlan, EvalPlan, LoadPlan
from autotune.memory import methods, recall, values
from autotune.memory.kernels import cuda_attention
from autotune.memory.rehearsal import CannotRehearse
from autotune.memory.shortcuts import shortcuts
from autotune.trial.anatomy import LiveStorages
from autotune.trial.objective import Batch, Objective

CUDA_UNIT = 512
"""Bytes to whose multiples torch's CUDA allocator rounds every block."""

_aten = torch.ops.aten
_DEVICE = torch.ops.prim.device.default
_MASKED = frozenset({_aten.where, _aten.masked_fill, _aten.masked_fill_})
"""Operators with a mask, which is not brought to the dtype of the rest."""

_FUSED_UPDATES = frozenset({_aten._fused_sgd_.default, _aten._fused_adagrad_.default})
"""Optimizers that update in place, of whose operators torch does not know what they give."""


class Followed(LiveStorages):
    """Live storages of fake tensors, with answers to what programs ask of values."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Say no: guarding every call costs as much as following it, and nothing is compiled."""
        return False

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is _DEVICE:  # asked for several times in every operator on fakes
            fake = args[0]
            in_kernel = fake.fake_mode.in_kernel_invocation
            return func(*args) if in_kernel else fake.fake_device
        return self.follow(func, types, args, kwargs or {})

    def compute(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operator on fakes; see `memory/values.py` for what stands in for its values."""
        if func is _aten._local_scalar_dense.default:
            return values.read_number(args[0])
        if func is _aten._pin_memory.default:
            return args[0].clone()
        if func in _FUSED_UPDATES:
            return None  # torch would compute it, on the device; it makes nothing
        if func.overloadpacket is _aten.set_:
            # torch would keep the storage as part of a key of its cache, and so for good.
            with disable_fake_tensor_cache(args[0].fake_mode):
                return func(*args, **kwargs)
        try:
            result = recall.run(func, args, kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            return self._from_values(func, args, kwargs, error)
        values.learn(func, args, kwargs, result)
        if self.device == "cpu" and torch.Tag.pointwise in func.tags:
            self.scratch += _cast_operands(func, args, result)
        return result

    def _from_values(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], error: Exception
    ) -> Any:
        if func is _aten.index.Tensor:
            places = _without_masks(args[1])
            if places is not None:
                return func(args[0], places)
        result = values.compute_shape(func, args, kwargs)
        if result is None:
            raise CannotRehearse(
                f"the shape of what {func} gives depends on values that a rehearsal does not have"
            ) from error
        return result


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How large a model and its training batches are to be, in place of their own size.

    Attributes:
        layers: Blocks of the model; 0 for all that it has.
        rows: Sequences of a batch.
        columns: Tokens of a sequence.
    """

    layers: int
    rows: int
    columns: int

    def of_batch(self, batch: Batch, length: int) -> Batch:
        """Cut or repeat a batch.

        Rows go or come at the end, columns at the beginning, so that padding stays.

        Args:
            batch: Tensors of a row for each sequence.
            length: Tokens of its sequences: the columns of what has as many.
        """
        made = {}
        for name, tensor in batch.items():
            places = torch.arange(self.rows) % len(tensor)
            made[name] = tensor[places]
            if tensor.ndim > 1 and tensor.shape[1] == length:
                columns = torch.arange(length - self.columns, length).clamp_min(0)
                made[name] = made[name][:, columns]
        return made


class FakeStandIns:
    """Fake tensors in place of weights and batches; see `trial.training.StandIns`.

    Data is made outside of the rehearsal, so that it is real, and nothing of it is counted.

    Args:
        storages: Follows them.
        counts_batches: Whether a batch's own memory counts: it lies outside of the allocator on a
            CPU, where it is not copied.
        size: Another size for the model and its training batches; None for their own.
        builds: Whether the model is built as a trial builds it, operator by operator, and not from
            its shapes: so random weights come to be on a CPU, where that counts.

    Attributes:
        not_loaded: Why the peak of loading is not known, or empty.
    """

    def __init__(
        self,
        storages: LiveStorages,
        *,
        counts_batches: bool,
        size: Size | None = None,
        builds: bool = False,
    ) -> None:
        self.storages = storages
        self.size = size
        self.builds = builds
        self.not_loaded = ""
        self._counts_batches = counts_batches

    def objective(self, objective: Objective) -> Objective:
        """Return the same objective, but for its models and batches, which are stand-ins."""
        return _StoodIn(objective, self)

    def model(self, model: nn.Module) -> nn.Module:
        """Give a model, on whatever device it was built, weights that are fakes on the CPU."""
        made: dict[int, Tensor] = {}
        for module in model.modules():
            places: tuple[dict[str, Any], ...] = (
                module._parameters,
                module._buffers,
                vars(module),
            )
            for tensors in places:
                for name, tensor in list(tensors.items()):
                    if isinstance(tensor, Tensor):
                        if id(tensor) not in made:
                            made[id(tensor)] = fake = _fake_like(tensor)
                            if getattr(tensor, "from_file", False):
                                self.storages.ignore((fake,))
                        tensors[name] = made[id(tensor)]
        return model

    def batch(self, batch: Batch) -> Batch:
        """Return fakes that know the values of a batch."""
        made: dict[str, Tensor] = {}
        for name, tensor in batch.items():
            if values.is_fake(tensor):
                made[name] = tensor
                continue
            with _disable_current_modes():
                value = tensor.clone()
            made[name] = torch.empty(tensor.shape, dtype=tensor.dtype)
            values.know(made[name], value)
        if not self._counts_batches:
            self.storages.ignore(made.values())
        return made


class _StoodIn:
    """An objective whose models and batches are replaced; the rest is its own."""

    def __init__(self, objective: Objective, stand_ins: FakeStandIns) -> None:
        self._objective = objective
        self._stand_ins = stand_ins

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._objective, name)
        if name != "build_teacher":
            return found
        return lambda: self._stand_ins.model(found())

    def build(self, plan: LoadPlan, seed: int) -> nn.Module:
        size = self._stand_ins.size
        if size is not None:
            plan = replace(plan, layers=size.layers)
        if self._stand_ins.builds:
            try:
                whole = replace(plan, shapes_only=False)
                return self._stand_ins.model(self._objective.build(whole, seed))
            except Exception as error:  # noqa: BLE001  shapes are enough for all but loading
                kind = type(error).__name__
                self._stand_ins.not_loaded = f"building the model failed with {kind}: {error}"
        return self._stand_ins.model(self._objective.build(plan, seed))

    def train_batches(self, plan: DataPlan, seed: int) -> Iterator[Batch]:
        size = self._stand_ins.size
        batches = self._objective.train_batches(plan, seed)
        while True:
            with _disable_current_modes():
                batch = next(batches)
                if size is not None:
                    batch = size.of_batch(batch, plan.sequence_length)
            yield self._stand_ins.batch(batch)

    def eval_batches(self, plan: EvalPlan, sequence_length: int) -> Sequence[Batch]:
        with _disable_current_modes():
            batches = self._objective.eval_batches(plan, sequence_length)
        return [self._stand_ins.batch(batch) for batch in batches[:1]]


@contextmanager
def surroundings(storages: LiveStorages, *, cuda: bool) -> Iterator[None]:
    """Let a trial's code run on fake tensors as it runs on real ones.

    Args:
        storages: Counts what the trial allocates.
        cuda: Whether attention is that of a CUDA device.
    """
    with ExitStack() as stack:
        for place, stand_in in _substitutes(storages, cuda=cuda).items():
            stack.enter_context(patch(place, stand_in))
        yield


def _substitutes(storages: LiveStorages, *, cuda: bool) -> dict[str, Any]:
    """Return what is replaced, by its full name."""
    random_state = torch.get_rng_state

    def counted_random_state() -> Tensor:
        """Checkpointing keeps the generator's state of every block, outside of any operator."""
        with _disable_current_modes():
            state = random_state()
        storages.adopt((state,), "activations")
        return state

    resize = torch.UntypedStorage.resize_

    def noticed_resize(storage: Any, size: int) -> Any:
        """Gathered weights are let go by giving their storage no bytes, outside of any operator."""
        resized = resize(storage, size)
        storages.resized(storage)
        return resized

    found: dict[str, Any] = shortcuts() | {
        "torch.UntypedStorage.resize_": noticed_resize,
        "torch.Tensor.numpy": methods.to_numpy(torch.Tensor.numpy),
        "torch.Tensor.tolist": methods.to_list(torch.Tensor.tolist),
        "torch.Tensor.pin_memory": methods.stay_put(torch.Tensor.pin_memory),
        "torch.Tensor.__deepcopy__": methods.copy_of_fakes(torch.Tensor.__deepcopy__),
        "torch.nn.Module._apply": methods.apply_to_fakes(nn.Module._apply),
        "torch.get_rng_state": counted_random_state,
        "torch.compile": _refuse_compilation,
        "torch.nn.Module.compile": _refuse_compilation,
        # transformers takes another way to attention masks when it is traced.
        "transformers.utils.import_utils.is_fake_tensor": lambda _: False,
    }
    if cuda:
        on_cuda: dict[str, Any] = {
            "torch.nn.functional.scaled_dot_product_attention": cuda_attention(
                torch.nn.functional.scaled_dot_product_attention
            ),
            "torch.Generator": _AnyDeviceGenerator,
            "torch.cuda.amp.common.amp_definitely_not_available": lambda: False,
            "torch.cuda.is_bf16_supported": lambda *_, **__: True,
        }
        found |= on_cuda
    return found


class _AnyDeviceGenerator(torch.Generator):
    """A generator of the CPU, whatever device is asked for: fakes draw no numbers."""

    def __new__(cls, device: Any = "cpu") -> _AnyDeviceGenerator:
        torch.device(device)  # refuses what is none
        return super().__new__(cls, "cpu")  # type: ignore[call-arg]  # the stub has no __new__


def _fake_like(tensor: Tensor) -> Tensor:
    if values.is_fake(tensor) and tensor.device.type != "meta":
        return tensor
    fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
    if not isinstance(tensor, nn.Parameter):
        return fake
    return nn.Parameter(fake, tensor.requires_grad)


def _cast_operands(func: Any, args: tuple[Any, ...], result: Any) -> list[Tensor]:
    """Return what a pointwise operator makes of operands of other dtypes than it computes in.

    On a CPU, they are copied as a whole; on CUDA, each value is converted as it is read.
    """
    operands = [a for a in args if isinstance(a, Tensor)]
    if func.overloadpacket in _MASKED:
        operands = [a for a in operands if a.dtype is not torch.bool]
    dtypes = {operand.dtype for operand in operands}
    if len(dtypes) < 2 and not (
        dtypes and isinstance(result, Tensor) and result.dtype not in dtypes
    ):
        return []
    common = functools.reduce(torch.promote_types, dtypes)
    if isinstance(result, Tensor) and result.is_floating_point() and not common.is_floating_point:
        common = result.dtype
    return [
        torch.empty(operand.shape, dtype=common)
        for operand in operands
        if operand.ndim > 0 and operand.dtype is not common
    ]


def _without_masks(indices: Any) -> list[Tensor | None] | None:
    """Return indices with known masks replaced by the places they select; None if one is not."""
    found: list[Tensor | None] = []
    for index in indices:
        if index is None or index.dtype not in (torch.bool, torch.uint8):
            found.append(index)
            continue
        places = values.places_of(index)
        if places is None:
            return None
        found.extend(places)
    return found


def _refuse_compilation(*_: Any, **__: Any) -> None:
    raise CannotRehearse("a compiled model plans its memory itself, which fake tensors do not show")
