"""What a process holds beside the tensors that a rehearsal counts: the CUDA context, workspaces.

The driver keeps a context for every process, and kernels join it as they are first used; cuBLAS
takes a workspace for each thread that multiplies. How much that is depends on the device, the
driver and torch's build. `autotune doctor` measures it where there is a device and keeps the result
in the user's cache (`memory/measure_outside.py`); elsewhere the table below says what to assume,
and how far that may be off. On a CPU it is what the interpreter and kernels hold beside tensors.

Contexts that others reported, with torch's lazy loading of kernels: 256 MiB on an RTX 3090 (torch
2.7, CUDA 12.8), 426 MiB on an RTX 6000 Ada (torch 2.10, CUDA 13.0), 274 MiB and about 300 and
400 MiB on cards that are not named.

References:
    github.com/invoke-ai/InvokeAI issue 9413; github.com/unslothai/unsloth-zoo pull request 1053;
    github.com/pytorch/pytorch issues 107667 and 109888, pull request 86509 (contexts), and
    `aten/src/ATen/cuda/CublasHandlePool.cpp` (workspaces).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from autotune.core.context import Device
from autotune.core.units import MIB
from autotune.memory.calibrate import Prior

CACHE = "AUTOTUNE_CACHE"
"""Environment variable that names another folder than `~/.cache/autotune`."""

KERNELS_BYTES = 96 * MIB
"""What a training's kernels are assumed to add to a bare context."""

CONTEXT_BYTES = 416 * MIB + KERNELS_BYTES
"""Assumed for devices of which nothing was reported: towards the upper end of what was."""

CONTEXT_SPREAD = 128 * MIB
"""Standard deviation of an assumed context; reports for one generation differ by as much."""

MEASURED_SPREAD = 32 * MIB
"""Standard deviation of a measured context: trainings do not all use the same kernels."""

REPORTED: Mapping[tuple[int, int], tuple[int, str]] = {
    (8, 6): (256 * MIB + KERNELS_BYTES, "assumed from what was reported for an RTX 3090"),
    (8, 9): (426 * MIB + KERNELS_BYTES, "assumed from what was reported for an RTX 6000 Ada"),
}
"""Context and where it is from, by compute capability."""

LARGE_WORKSPACE, WORKSPACE = 32 * MIB, 8320 * 1024
"""Of cuBLAS, for each thread that multiplies: from Hopper on, and before."""

LARGE_FROM = (9, 0)
MULTIPLYING_THREADS = 2
"""The one that goes forward and autograd's, which goes backward."""

HEAP = Prior(fixed_spread=16 * MIB, factor_spread=0.05, noise=0.02)
"""On a CPU: 6 to 17 MiB beside the tensors were found in trainings of 12 models and configurations
of 0.4 to 0.9 GiB (`tests/benchmarks/rehearsal.py`), up to 37 MiB in trainings that import further
libraries in their first step. Nothing grows with the tensors, as an allocator's rounding would."""

_UNKNOWN = Prior()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outside:
    """What a process holds on a device beside the tensors that are counted.

    Attributes:
        fixed_bytes: The context on CUDA, heap on a CPU.
        spread: Its standard deviation, in bytes.
        workspace_bytes: Workspaces of cuBLAS, which are taken from the caching allocator; 0 on a
            CPU.
        source: Whether it was measured or assumed, for a reader.
        factor_spread: Standard deviation of the share of what is counted that is missed.
        noise: Expected relative error of a measurement.
    """

    fixed_bytes: int
    spread: float
    workspace_bytes: int = 0
    source: str = ""
    factor_spread: float = _UNKNOWN.factor_spread
    noise: float = _UNKNOWN.noise

    @property
    def prior(self) -> Prior:
        """What to expect of measurements before there are any."""
        return Prior(
            fixed_bytes=self.fixed_bytes,
            fixed_spread=self.spread,
            factor_spread=self.factor_spread,
            noise=self.noise,
        )


def outside_of(device: Device) -> Outside:
    """Return what a process holds on a device, as measured there or else as assumed."""
    if device.kind != "cuda":
        return Outside(
            fixed_bytes=round(HEAP.fixed_bytes),
            spread=HEAP.fixed_spread,
            source="assumed: heap that the process keeps",
            factor_spread=HEAP.factor_spread,
            noise=HEAP.noise,
        )
    return _measured().get(_key(device.name)) or assumed(device.capability)


def assumed(capability: tuple[int, int] | None) -> Outside:
    """Return what to assume for a CUDA device that was not measured.

    Args:
        capability: CUDA compute capability; None if it is not known.
    """
    nothing = (CONTEXT_BYTES, "assumed for driver and kernels; differs between machines")
    context, source = REPORTED.get(capability or (0, 0), nothing)
    each = LARGE_WORKSPACE if capability and capability >= LARGE_FROM else WORKSPACE
    return Outside(
        fixed_bytes=context,
        spread=CONTEXT_SPREAD,
        workspace_bytes=MULTIPLYING_THREADS * each,
        source=source,
    )


def remember(device: Device, context_bytes: int, workspace_bytes: int) -> Path:
    """Keep what was measured on a device, for this build of torch.

    Args:
        device: Named as the driver reports it.
        context_bytes: What NVML showed beyond the caching allocator's segments.
        workspace_bytes: What the allocator held after a step whose tensors were all gone.

    Returns:
        The file.

    Raises:
        OSError: If it cannot be written.
    """
    path = _file()
    measured = _measured() | {
        _key(device.name): Outside(
            fixed_bytes=context_bytes,
            spread=MEASURED_SPREAD,
            workspace_bytes=workspace_bytes,
            source="measured by `autotune doctor`",
        )
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({key: asdict(value) for key, value in measured.items()}, indent=2)
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(f"{text}\n", encoding="utf-8")
    temporary.replace(path)  # whoever reads it at this moment sees a whole file
    return path


def _measured() -> dict[str, Outside]:
    """Return what the file has; a file that is not there or broken has nothing."""
    try:
        found = json.loads(_file().read_text(encoding="utf-8"))
        return {key: Outside(**value) for key, value in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _file() -> Path:
    named = os.environ.get(CACHE)
    folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return (Path(named) if named else Path(folder) / "autotune") / "devices.json"


def _key(name: str) -> str:
    """Name a device and the build of torch, which brings the kernels."""
    try:
        build = version("torch")
    except PackageNotFoundError:
        build = "none"
    return f"{name}, torch {build}"
