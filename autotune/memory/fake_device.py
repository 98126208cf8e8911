"""CUDA semantics on a machine without CUDA: fake tensors that live on `cuda`, backward included.

A fake tensor may say that it is on any device, but two parts of torch ask about the device itself:
the device guard, which a build without CUDA lacks, and autograd, which wants to know the stream of
a gradient. Torch has a guard that does nothing, for builds whose device is missing, and an
interface by which a device says whether it has a context. `install` puts the first in place and has
the second answer "built, but without a context", so that autograd treats `cuda` as it treats the
CPU. Nothing else changes, and no device is touched.

There is no public way. What was tried, on torch 2.13:

- `FakeTensorMode` alone: "PyTorch is not linked with support for cuda devices" (CPU build),
  "hasPrimaryContext expects a valid device index" (CUDA build without a device);
- a Python backend (`torch.utils.backend_registration`) runs forward and backward, but cannot be
  named `cuda`, so everything that asks for that name (fused optimizers, autocast, attention,
  dropout, knobs) goes another way; registered beside fake `cuda` tensors, autograd asserts that
  their stream is missing;
- `device="meta"`: no fused optimizers, no autocast.

Both places are part of torch's private layout, so what was done is checked at once by a backward
pass, and a process that does this should do nothing else (`memory/rehearsal_worker.py`). It must
come before the first backward of the process, in which autograd looks at devices once.

References:
    pytorch issues 92627, 122109 and 157869 (fake CUDA tensors without CUDA).
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from autotune.memory.rehearsal import ON_CPU_TENSORS

_GUARDS = "_ZN3c104impl26device_guard_impl_registryE"
_HOOKS = "_ZN2at6detail12getCUDAHooksEv"
_CUDA = 1
_GUARD_SLOTS, _HOOK_SLOTS, _HEADER = 64, 80, 2
_IS_BUILT, _HAS_CONTEXT = 2, 4
"""Places in the table of functions of torch's AcceleratorHooksInterface."""


class NoFakeDevice(Exception):
    """Fake CUDA tensors cannot be had in this process; the message says why."""


@cache
def install() -> str:
    """Make fake `cuda` tensors work, backward included; once in a process.

    Returns:
        `"device"` if there is a CUDA device, which needs nothing; else `"stand-in"`.

    Raises:
        NoFakeDevice: If this torch is laid out in another way, or the check fails.
    """
    if torch.cuda.is_available():
        return "device"
    if os.environ.get(ON_CPU_TENSORS):
        raise NoFakeDevice("the process that tried them before has crashed")
    try:
        _install_guard()
        restore = _install_hooks()
    except (OSError, AttributeError, ValueError, RuntimeError) as error:
        raise NoFakeDevice(f"torch {torch.__version__} has another layout: {error}") from error
    try:
        _check()
    except Exception as error:
        restore()
        raise NoFakeDevice(f"the check failed with torch {torch.__version__}: {error}") from error
    return "stand-in"


def _install_guard() -> None:
    """Have torch use its guard that does nothing.

    It does so where a guard is registered that counts no devices, as in a CUDA build on a machine
    without CUDA. A CPU build registers none, so one whose every function returns 0 goes first.
    """
    registry = (ctypes.c_void_p * (_CUDA + 1)).in_dll(_library("libc10.so"), _GUARDS)
    if not registry[_CUDA]:
        functions = (ctypes.c_void_p * _GUARD_SLOTS)(*[_no()] * _GUARD_SLOTS)
        guard = (ctypes.c_void_p * 2)(ctypes.addressof(functions), 0)
        _keep_for_good(functions, guard)
        registry[_CUDA] = ctypes.addressof(guard)
    before = registry[_CUDA]
    torch._C._ensureCUDADeviceGuardSet()
    if registry[_CUDA] == before:
        raise RuntimeError("torch kept its CUDA guard")


def _install_hooks() -> Any:
    """Have the CUDA hooks answer that CUDA is built and has no context; return the way back."""
    get_hooks = getattr(_library("libtorch_cpu.so"), _HOOKS)
    get_hooks.restype = ctypes.c_void_p
    hooks = (ctypes.c_void_p * 1).from_address(get_hooks())
    before, word = hooks[0], ctypes.sizeof(ctypes.c_void_p)
    if before is None:
        raise RuntimeError("the CUDA hooks have no functions")
    count = _HEADER + _HOOK_SLOTS
    table = (ctypes.c_void_p * count)(
        *(ctypes.c_void_p * count).from_address(before - _HEADER * word)
    )
    table[_HEADER + _IS_BUILT] = _yes()
    table[_HEADER + _HAS_CONTEXT] = _no()
    _keep_for_good(table)
    hooks[0] = ctypes.addressof(table) + _HEADER * word

    def restore() -> None:
        hooks[0] = before

    found = torch._C._accelerator_getAccelerator()
    if found is None or found.type != "cuda":
        restore()
        raise RuntimeError(f"the accelerator is {found}")
    return restore


def _check() -> None:
    """Go forward and backward over every part of autograd that a training uses."""
    with FakeTensorMode():
        layer = torch.nn.Linear(8, 8, device="cuda:0")
        x = torch.randn(2, 8, device="cuda:0")
        y = checkpoint(layer, x, use_reentrant=False)
        (y + layer(x).relu()).sum().backward()
        torch.nn.utils.clip_grad_norm_(layer.parameters(), 1.0)
        torch.optim.AdamW(layer.parameters(), fused=True).step()
        grad = layer.weight.grad
    if grad is None or grad.device.type != "cuda":
        raise RuntimeError("a gradient is not on the device")
    real = torch.ones(2, requires_grad=True)
    real.sum().backward()
    if real.grad is None or real.grad.tolist() != [1.0, 1.0]:
        raise RuntimeError("real gradients are wrong")


def _library(name: str) -> ctypes.CDLL:
    return ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / name))


def _yes() -> int | None:
    """Return the address of a function that says 1, whatever it is given, while Python lives.

    It must not be Python itself: torch asks as the process ends, too.
    """
    return ctypes.cast(ctypes.pythonapi.Py_IsInitialized, ctypes.c_void_p).value


def _no() -> int | None:
    """Return the address of a function that says 0 and does nothing, as POSIX systems have it."""
    return ctypes.cast(ctypes.CDLL(None).pthread_mutexattr_destroy, ctypes.c_void_p).value


def _keep_for_good(*objects: object) -> None:
    """Have Python never free what torch points at, not even at its end."""
    for kept in objects:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))
