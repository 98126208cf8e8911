"""Saved activations in host memory or in a file: two forms for `knobs/saved_tensors.py`."""

from __future__ import annotations

import tempfile
import weakref
from pathlib import Path

import psutil
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from autotune.core.errors import ModelError

_IN_MEMORY = {"tmpfs", "ramfs"}


def folder_on_disk() -> Path:
    """Return the folder for temporary files, or `/var/tmp` where that one is itself in memory.

    Raises:
        ModelError: If both are.
    """
    for folder in (Path(tempfile.gettempdir()), Path("/var/tmp")):
        if folder.is_dir() and _file_system(folder) not in _IN_MEMORY:
            return folder
    raise ModelError(
        "every folder for temporary files is in memory here, so a file would free none",
        help="point TMPDIR to a folder on a disk, or set activation_offload to none",
    )


class OnHost:
    """Values in page-locked host memory, or in ordinary memory if they come from there.

    Args:
        values: `(count,)`.
        row: Not used.
    """

    def __init__(self, values: Tensor, row: int) -> None:
        self._device = values.device
        pinned = values.is_cuda and not isinstance(values, FakeTensor)
        self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=pinned)
        self._values.copy_(values, non_blocking=pinned)

    def restore(self) -> Tensor:
        """Return the values on the device that they came from."""
        return self._values.to(self._device, non_blocking=True, copy=True)


class Spill:
    """One file for one forward pass, written from its beginning to its end.

    Args:
        folder: Where the file is made; it has no name there.
    """

    def __init__(self, folder: Path) -> None:
        self.file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  # lives as long as its values
        self._end = 0
        weakref.finalize(self, self.file.close)

    def write(self, values: Tensor, row: int) -> OnDisk:
        """Append values `(count,)`."""
        kept = OnDisk(self, self._end, values)
        if not isinstance(values, FakeTensor):  # those have no values
            self.file.seek(self._end)
            self.file.write(_bytes(values.cpu()))
        self._end += values.nbytes
        return kept


class OnDisk:
    """Values in a file, which is kept open as long as any of them.

    Args:
        spill: The file.
        start: Their place in it, in bytes.
        values: Their number, dtype and device are remembered, nothing else.
    """

    def __init__(self, spill: Spill, start: int, values: Tensor) -> None:
        self._spill, self._start = spill, start
        self._count, self._dtype, self._device = len(values), values.dtype, values.device

    def restore(self) -> Tensor:
        """Read the values back to the device that they came from."""
        values = torch.empty(self._count, dtype=self._dtype)
        if not isinstance(values, FakeTensor):
            self._spill.file.seek(self._start)
            self._spill.file.readinto(_bytes(values))
        return values.to(self._device)


def _bytes(values: Tensor) -> memoryview:
    return values.view(torch.uint8).numpy().data


def _file_system(folder: Path) -> str:
    """Return the type of the file system that a folder lies on, empty if it is not known."""
    real = folder.resolve()
    mounts = {
        Path(mount.mountpoint): mount.fstype
        for mount in psutil.disk_partitions(all=True)
        if real.is_relative_to(mount.mountpoint)
    }
    return mounts[max(mounts, key=lambda path: len(path.parts))] if mounts else ""
