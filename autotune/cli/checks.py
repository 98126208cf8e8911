"""What `doctor` looks at, each as one line: what was found, and whether that will do."""

from __future__ import annotations

import enum
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from autotune.core.context import Context, Device
from autotune.core.units import GIB, format_gib
from autotune.knobs import BUILTIN
from autotune.knobs.accumulation import ACCUMULATION
from autotune.memory.outside import outside_of, remember
from autotune.runners.devices import detect_devices, installed_libraries, library_versions

LEAST_DISK = GIB
"""Below this much free space, results may not find room."""

_TORCH_SECONDS = 120
_TORCH = """
import torch
cuda = torch.version.cuda or "no CUDA"
seen = torch.cuda.device_count()
total = float(torch.ones(3).sum())
assert total == 3.0, total
print(f"{torch.__version__}, {cuda}, sees {seen} CUDA device{'s' * (seen != 1)}")
"""
_OPTIONAL = {
    "peft": ("peft", "LoRA on quantised weights"),
    "pandas": ("pandas", "Run.to_pandas"),
}
"""Libraries that are not required: the extra that installs each, and what needs it."""


class Verdict(enum.Enum):
    """Whether something will do."""

    GOOD = "good"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    verdict: Verdict
    name: str
    found: str


def machine_checks(results: Path, *, fast: bool) -> list[Check]:
    """Look at everything.

    Args:
        results: Where runs would be kept.
        fast: Whether to leave out what takes seconds.
    """
    devices = detect_devices()
    checks = [check_device(device) for device in devices]
    checks += [check_outside(device, fast=fast) for device in devices if device.kind == "cuda"]
    checks += [check_nvml(), check_precision(devices[0]), check_knobs(devices[0])]
    checks += [check_python(), check_torch(fast=fast), *check_optional()]
    return [*checks, check_results(results)]


def check_device(device: Device) -> Check:
    """Say what a device is, and how much of it is free."""
    capability = f", compute {'.'.join(map(str, device.capability))}" if device.capability else ""
    cores = f", {device.cores} cores" if device.kind == "cpu" else ""
    free = f"{format_gib(device.total_bytes)}, {format_gib(device.free_bytes)} free"
    found = f"{device.label} {device.name}, {free}{cores}{capability}"
    low = device.free_bytes < device.total_bytes * 0.1
    return Check(Verdict.WARNING if low else Verdict.GOOD, "device", found)


def check_outside(device: Device, *, fast: bool) -> Check:
    """Measure what a process holds on a CUDA device beside its tensors, and keep it.

    Args:
        device: A CUDA device.
        fast: Whether to say only what is known of it.
    """
    name = f"{device.label} context"
    if fast:
        known = outside_of(device)
        return Check(Verdict.GOOD, name, f"{format_gib(known.fixed_bytes)}, {known.source}")
    try:
        done = subprocess.run(
            [sys.executable, "-m", "autotune.memory.measure_outside", device.label],
            capture_output=True,
            text=True,
            timeout=_TORCH_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Check(Verdict.WARNING, name, f"was not measured within {_TORCH_SECONDS} s")
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return Check(Verdict.WARNING, name, f"cannot be measured: {lines[-1]}")
    found = json.loads(done.stdout)
    said = (
        f"{format_gib(found['context_bytes'])} of a process beside its tensors, "
        f"{format_gib(found['workspace_bytes'])} of workspaces"
    )
    try:
        return Check(Verdict.GOOD, name, f"{said}; kept in {remember(device, **found)}")
    except OSError as error:
        return Check(Verdict.WARNING, name, f"{said}; cannot be kept: {error}")


def check_precision(device: Device) -> Check:
    """Say which number formats a device computes by itself."""
    if device.bf16:
        return Check(Verdict.GOOD, "precision", f"bf16 in hardware on {device.label}")
    found = f"bf16 not in hardware on {device.label}: it saves memory, not time"
    return Check(Verdict.WARNING, "precision", found)


def check_nvml() -> Check:
    """Say whether the driver answers, which counts memory on CUDA devices."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        if Path("/dev/nvidia0").exists():
            return Check(Verdict.PROBLEM, "NVML", f"a GPU is there, but the driver says: {error}")
        return Check(Verdict.GOOD, "NVML", "no NVIDIA driver: trials run on the CPU")
    try:
        return Check(Verdict.GOOD, "NVML", f"driver {pynvml.nvmlSystemGetDriverVersion()}")
    finally:
        pynvml.nvmlShutdown()


def check_python() -> Check:
    """Say which versions are installed."""
    versions = library_versions()
    shown = ("python", "autotune-memory", "transformers", "optuna")
    found = ", ".join(f"{name} {versions[name]}" for name in shown if name in versions)
    return Check(Verdict.GOOD, "versions", found)


def check_torch(*, fast: bool) -> Check:
    """Start torch in a process of its own; with `fast` only see whether it is installed."""
    version = library_versions().get("torch")
    if version is None:
        return Check(Verdict.PROBLEM, "torch", "not installed: pip install torch")
    if fast:
        return Check(Verdict.GOOD, "torch", f"{version}, not started (--fast)")
    try:
        done = subprocess.run(
            [sys.executable, "-c", _TORCH],
            capture_output=True,
            text=True,
            timeout=_TORCH_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Check(Verdict.PROBLEM, "torch", f"did not start within {_TORCH_SECONDS} s")
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return Check(Verdict.PROBLEM, "torch", f"does not start: {lines[-1]}")
    return Check(Verdict.GOOD, "torch", done.stdout.strip())


def check_optional() -> list[Check]:
    """Say which optional libraries are missing, what needs them, and how to install them."""
    from importlib.util import find_spec

    missing = {
        name: f"not installed: {what} off; pip install 'autotune-memory[{extra}]'"
        for name, (extra, what) in _OPTIONAL.items()
        if find_spec(name) is None
    }
    if not missing:
        return [Check(Verdict.GOOD, "optional", f"{', '.join(_OPTIONAL)} installed")]
    return [Check(Verdict.WARNING, name, found) for name, found in missing.items()]


def check_knobs(device: Device) -> Check:
    """Say which values of knobs this machine rules out, whatever the model."""
    neutral = {knob.name: knob.neutral for knob in BUILTIN}
    batch = max(value for value in ACCUMULATION.domain.grid() if isinstance(value, int))
    context = Context(
        config=neutral, device=device, global_batch=batch, libraries=installed_libraries()
    )
    blocked = [
        f"{knob.name}={value} {sentence}"
        for knob in BUILTIN
        for value in knob.domain.grid()
        if value != knob.neutral and (sentence := knob.blocked(value, context)) is not None
    ]
    if blocked:
        return Check(Verdict.WARNING, "knobs", "; ".join(blocked))
    return Check(Verdict.GOOD, "knobs", "no value is ruled out by this machine")


def check_results(results: Path) -> Check:
    """Say whether results can be written, and how much room there is."""
    place = results.absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        found = f"{place} cannot be written: name another folder, --results DIR"
        return Check(Verdict.PROBLEM, "results", found)
    free = shutil.disk_usage(place).free
    found = f"{format_gib(free)} free for {results}/"
    if free < LEAST_DISK:
        return Check(Verdict.PROBLEM, "results", f"{found}: too little")
    return Check(Verdict.GOOD, "results", found)
