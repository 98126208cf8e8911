"""What this machine has, without initialising any of it.

CUDA devices are asked for through NVML, CPUs through the kernel; torch is not imported. Library
versions come from package metadata.
"""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from autotune.core.context import Device
from autotune.core.errors import UnknownName

OPTIONAL_LIBRARIES = ("peft", "pandas", "scipy", "torchao", "flash_attn")
_REPORTED = (
    "autotune-memory",
    "torch",
    "transformers",
    "optuna",
    "datasets",
    "sqlalchemy",
    "numpy",
    *OPTIONAL_LIBRARIES,
)
_BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}


def detect_devices() -> list[Device]:
    """Return every CUDA device, then the CPU."""
    return [*_cuda_devices(), cpu_device()]


def pick_device(text: str | None = None) -> Device:
    """Return the device of that label, or the first CUDA device, or else the CPU.

    Raises:
        UnknownName: If there is no such device.
    """
    devices = detect_devices()
    if text is None:
        return devices[0]
    for device in devices:
        if text in (device.label, device.kind):
            return device
    raise UnknownName.among("device", text, [d.label for d in devices], listing="autotune doctor")


def cpu_device() -> Device:
    """Describe the CPU: the memory of the machine, or of the container if that is less."""
    import psutil

    memory = psutil.virtual_memory()
    total = min([memory.total, *_container_limits()])
    info = _cpu_info()
    name = re.search(r"model name\s*:\s*(.+)", info)
    flags = re.search(r"(?:flags|Features)\s*:\s*(.+)", info)
    return Device(
        kind="cpu",
        name=name[1].strip() if name else platform.processor() or platform.machine(),
        total_bytes=total,
        free_bytes=min(memory.available, total),
        cores=len(os.sched_getaffinity(0)),
        bf16=bool(_BF16_FLAGS & set(flags[1].split())) if flags else False,
    )


def installed_libraries() -> frozenset[str]:
    """Return the optional libraries that can be imported."""
    return frozenset(name for name in OPTIONAL_LIBRARIES if find_spec(name) is not None)


def library_versions() -> dict[str, str]:
    """Return versions by distribution name, Python's included; missing ones are left out."""
    found = {"python": platform.python_version()}
    for name in _REPORTED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _cuda_devices() -> list[Device]:
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        count = pynvml.nvmlDeviceGetCount()
        if visible is None:
            indices = list(range(count))
        else:
            indices = [int(i) for i in visible.split(",") if i.strip().isdigit() and int(i) < count]
        return [_cuda_device(index, physical) for index, physical in enumerate(indices)]
    finally:
        pynvml.nvmlShutdown()


def _cuda_device(index: int, physical: int) -> Device:
    import pynvml

    handle = pynvml.nvmlDeviceGetHandleByIndex(physical)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
    name = pynvml.nvmlDeviceGetName(handle)
    return Device(
        kind="cuda",
        index=index,
        name=name.decode() if isinstance(name, bytes) else name,
        total_bytes=int(memory.total),
        free_bytes=int(memory.free),
        cores=len(os.sched_getaffinity(0)),
        bf16=major >= 8,
        capability=(major, minor),
    )


def _cpu_info() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""


def _container_limits() -> list[int]:
    """Return the memory limits of the control groups that this process is in, if any are set."""
    limits = []
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(path).read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            limits.append(int(text))
    return limits
