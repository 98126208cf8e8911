"""Pausing a training, and going on with it in another process as if it had never stopped.

A trial that pauses leaves a checkpoint: what of the model changes, optimizer states as they are
stored, the position in the learning rate's schedule, which is that of the whole training, the
position in the data, and every generator of random numbers. Whatever follows from the seed and the
configuration is not kept: the process that goes on builds model, teacher and optimizer anew as at
the start, and then puts the checkpoint's values in their places. So a checkpoint of adapters holds
adapters, not the weights under them.

Optimizer states are not restored by torch's `load_state_dict`, which would cast states in fp32 or
in codes to the dtype of the weights.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from autotune.core.errors import ModelError
from autotune.trial.loop import Training
from autotune.trial.objective import Batch

if TYPE_CHECKING:
    from autotune.trial.spec import TrialSpec

_PLAIN = (bool, int, float, str)


_TENSOR, _WHERE = "tensor", "where"


class Pause:
    """Where a training may stop and go on; made before its first step.

    Args:
        training: Everything that takes part, as at the start of a whole training.
        rates: The schedule of learning rates, of the whole training.
        spec: Names the checkpoint; without one there is nothing to go on from, and none is left.
    """

    def __init__(self, training: Training, rates: LRScheduler, spec: TrialSpec) -> None:
        self._training = training
        self._rates = rates
        self._path = Path(spec.checkpoint)
        self._named = bool(spec.checkpoint) and not spec.probe
        self._pauses = self._named and spec.until < 1.0
        self._at_start = {name: _version(tensor) for name, tensor in _tensors(training.model)}

    def go_on(self, batches: Iterator[Batch]) -> int:
        """Restore the checkpoint, if there is one.

        Args:
            batches: Of the whole training, from its first one; those that were seen are passed.

        Returns:
            Optimizer steps that have been done; 0 without a checkpoint.

        Raises:
            ModelError: If the checkpoint is of another training.
        """
        if not self._named or not self._path.is_file():
            return 0
        kept = torch.load(self._path, map_location="cpu", mmap=True, weights_only=True)
        step: int = kept["step"]
        next(itertools.islice(batches, step, step), None)
        self._restore_model(kept["tensors"], kept["plain"])
        _restore_states(_owner(self._training.optimizer), kept["states"])
        groups = self._training.optimizer.param_groups
        for group, options in zip(groups, kept["groups"], strict=True):
            group.update(options)
        self._rates.load_state_dict(kept["rates"])
        scaler = self._training.helpers.scaler
        if scaler is not None:
            vars(scaler).update(kept["scaler"])
        _restore_randomness(kept["randomness"])
        return step

    def keep(self, step: int, steps: int) -> None:
        """Write a checkpoint in the place of an earlier one, all of it or nothing.

        There is none of a training that is over, or that was not asked to pause.

        Args:
            step: Optimizer steps that have been done.
            steps: Of the whole training.
        """
        if not self._pauses or step >= steps:
            return
        owner = _owner(self._training.optimizer)
        scaler = self._training.helpers.scaler
        content = {
            "step": step,
            "tensors": dict(self._changed()),
            "plain": dict(_plain(self._training.model)),
            "states": [
                {name: _stored(value) for name, value in owner.state.get(p, {}).items()}
                for group in owner.param_groups
                for p in group["params"]
            ],
            "groups": [
                {name: value for name, value in group.items() if name != "params"}
                for group in self._training.optimizer.param_groups
            ],
            "rates": self._rates.state_dict(),
            "scaler": {} if scaler is None else dict(vars(scaler)),
            "randomness": _randomness(),
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix(".partial")
        torch.save(content, partial)
        partial.replace(self._path)

    def _changed(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every tensor of the model that trains, or was changed since the start."""
        for name, tensor in _tensors(self._training.model):
            if tensor.requires_grad or self._at_start.get(name) != _version(tensor):
                yield name, _alone(tensor.detach())

    @torch.no_grad()
    def _restore_model(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        model = self._training.model
        found = dict(_tensors(model))
        for name, value in tensors.items():
            target = found.get(name)
            if target is None or target.shape != value.shape or target.dtype != value.dtype:
                raise ModelError(
                    f"the checkpoint {self._path} has a tensor {name} of shape "
                    f"{tuple(value.shape)} that the model built anew does not have",
                    help="delete the checkpoint, so that the trial starts over",
                )
            target.copy_(value)
        modules = dict(model.named_modules())
        for name, values in plain.items():
            for key, value in values.items():
                setattr(modules[name], key, value)


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield parameters and buffers, those too that are no part of a saved model."""
    yield from model.named_parameters()
    yield from model.named_buffers()


def _version(tensor: Tensor) -> tuple[int, int]:
    """Return what differs after a tensor was changed in place or replaced."""
    return id(tensor), tensor._version


def _plain(model: nn.Module) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the plain attributes of every module: counts of what was pruned, blocks passed by."""
    for name, module in model.named_modules():
        values = {
            key: value
            for key, value in vars(module).items()
            if isinstance(value, _PLAIN) and not key.startswith("_")
        }
        if values:
            yield name, values


def _owner(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Return the optimizer that holds states: the innermost of those that wrap each other."""
    inner = getattr(optimizer, "inner", None)
    return optimizer if inner is None else _owner(inner)


def _stored(value: Any) -> Any:
    """Return a value of an optimizer's state, as a pair with where it lives if it is a tensor."""
    if not torch.is_tensor(value):
        return value
    where = "pinned" if value.device.type == "cpu" and value.is_pinned() else value.device.type
    return {_TENSOR: _alone(value.detach()), _WHERE: where}


def _restored(value: Any, device: torch.device) -> Any:
    """Return what `_stored` was given; a tensor in the same kind of memory as before."""
    if not (isinstance(value, dict) and value.keys() == {_TENSOR, _WHERE}):
        return value
    tensor: Tensor = value[_TENSOR]
    if value[_WHERE] == "pinned":
        return tensor.pin_memory()
    return tensor.clone() if value[_WHERE] == "cpu" else tensor.to(device)


def _alone(tensor: Tensor) -> Tensor:
    """Return a tensor that is not part of a larger memory, all of which would be written."""
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole else tensor.clone()


def _restore_states(optimizer: torch.optim.Optimizer, states: list[dict[str, Any]]) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for parameter, state in zip(parameters, states, strict=True):
        if state:
            optimizer.state[parameter] = {
                name: _restored(value, parameter.device) for name, value in state.items()
            }


def _randomness() -> dict[str, Any]:
    """Return the state of every generator of random numbers."""
    return {
        "python": random.getstate(),
        "numpy": _numpy_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def _numpy_state() -> tuple[str, list[int], int, int, float]:
    """Return the state of numpy's generator in plain numbers, which need no pickle to be read."""
    name, keys, place, has_gauss, gauss = np.random.get_state()
    return str(name), np.asarray(keys).tolist(), int(place), int(has_gauss), float(gauss)


def _restore_randomness(states: Mapping[str, Any]) -> None:
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"].clone())
    for index, state in enumerate(states["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(state, index)
