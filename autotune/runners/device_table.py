"""Devices that are known by name, so that memory can be predicted for one that is not here.

Memory is what `nvidia-smi` shows with a recent driver: what is on the box less what the driver
keeps for itself. Drivers and error correction move it by up to 2 %. What a process of its own
holds on a card, its context, follows from the compute capability (`memory/outside.py`).
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass

from autotune.core.context import Device
from autotune.core.errors import UnknownName
from autotune.core.units import MIB
from autotune.runners.devices import detect_devices, pick_device

_BF16_FROM = (8, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownDevice:
    """A device as the driver reports it.

    Attributes:
        memory: Total memory in MiB.
        capability: CUDA compute capability.
    """

    memory: int
    capability: tuple[int, int]


DEVICES: Mapping[str, KnownDevice] = {
    "A10": KnownDevice(memory=23028, capability=(8, 6)),
    "A10G": KnownDevice(memory=23028, capability=(8, 6)),
    "A30": KnownDevice(memory=24576, capability=(8, 0)),
    "A40": KnownDevice(memory=46068, capability=(8, 6)),
    "A100-40GB": KnownDevice(memory=40960, capability=(8, 0)),
    "A100-80GB": KnownDevice(memory=81920, capability=(8, 0)),
    "B200": KnownDevice(memory=183359, capability=(10, 0)),
    "GH200-96GB": KnownDevice(memory=97871, capability=(9, 0)),
    "H100-80GB": KnownDevice(memory=81559, capability=(9, 0)),
    "H100-94GB": KnownDevice(memory=95830, capability=(9, 0)),
    "H200": KnownDevice(memory=143771, capability=(9, 0)),
    "L4": KnownDevice(memory=23034, capability=(8, 9)),
    "L40S": KnownDevice(memory=46068, capability=(8, 9)),
    "P100-16GB": KnownDevice(memory=16384, capability=(6, 0)),
    "RTX2080Ti": KnownDevice(memory=11264, capability=(7, 5)),
    "RTX3060": KnownDevice(memory=12288, capability=(8, 6)),
    "RTX3080": KnownDevice(memory=10240, capability=(8, 6)),
    "RTX3090": KnownDevice(memory=24576, capability=(8, 6)),
    "RTX4060": KnownDevice(memory=8188, capability=(8, 9)),
    "RTX4070": KnownDevice(memory=12282, capability=(8, 9)),
    "RTX4080": KnownDevice(memory=16376, capability=(8, 9)),
    "RTX4090": KnownDevice(memory=24564, capability=(8, 9)),
    "RTX5090": KnownDevice(memory=32607, capability=(12, 0)),
    "RTX6000Ada": KnownDevice(memory=49140, capability=(8, 9)),
    "RTXA6000": KnownDevice(memory=49140, capability=(8, 6)),
    "T4": KnownDevice(memory=15360, capability=(7, 5)),
    "V100-16GB": KnownDevice(memory=16384, capability=(7, 0)),
    "V100-32GB": KnownDevice(memory=32768, capability=(7, 0)),
}
"""Known devices by name."""


def find_device(text: str | None) -> Device:
    """Return a device of this machine, or one that is known by name.

    Args:
        text: `cpu`, `cuda`, `cuda:1`, or a name of `DEVICES` in any spelling: `a100 80gb`. None
            stands for the first CUDA device of this machine, or else its CPU.

    Raises:
        UnknownName: If it is neither.
    """
    if text is None:
        return pick_device()
    here = detect_devices()
    if any(text in (device.label, device.kind) for device in here):
        return pick_device(text)
    names = {_plain(name): name for name in DEVICES}
    name = names.get(_plain(text))
    if name is None:
        raise UnknownName(
            f"unknown device '{text}'", where="--device", help=_suggestion(text, here)
        )
    return _device(name)


def is_here(device: Device) -> bool:
    """Whether this machine has a device, so that something can run on it."""
    return any((d.label, d.name) == (device.label, device.name) for d in detect_devices())


def _device(name: str) -> Device:
    known = DEVICES[name]
    return Device(
        kind="cuda",
        name=name,
        total_bytes=known.memory * MIB,
        free_bytes=known.memory * MIB,
        cores=len(os.sched_getaffinity(0)),
        bf16=known.capability >= _BF16_FROM,
        capability=known.capability,
    )


def _suggestion(text: str, here: list[Device]) -> str:
    """Say what was meant, and all that could be: this machine's devices, and known ones."""
    names = {_plain(name): name for name in DEVICES}
    close = difflib.get_close_matches(_plain(text), names, n=1, cutoff=0.5)
    started = [name for plain, name in names.items() if plain.startswith(_plain(text))]
    meant = started or [names[plain] for plain in close]
    lines = [f"did you mean {' or '.join(repr(name) for name in meant)}?"] if meant else []
    if text.startswith("cuda"):
        lines = ["there is no such CUDA device here; name the one that is meant"]
    lines.append(f"here: {', '.join(device.label for device in here)}")
    lines.append(f"known by name: {', '.join(DEVICES)}")
    return "\n".join(lines)


def _plain(text: str) -> str:
    """Return a name without what people spell differently: `NVIDIA A100-SXM4-80GB`."""
    kept = "".join(letter for letter in text.lower() if letter.isalnum())
    for word in ("nvidia", "geforce", "tesla", "sxm4", "sxm5", "sxm2", "pcie"):
        kept = kept.replace(word, "")
    return kept
