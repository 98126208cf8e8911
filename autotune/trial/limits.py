"""A budget that is enforced while a trial runs, not only judged afterwards.

On CUDA the caching allocator is capped, so a 16 GB budget is real on an 80 GB card. On a CPU the
kernel refuses private memory above the limit (`RLIMIT_DATA`), which torch and Python turn into
errors that can be caught. It counts what is reserved, such as the whole stacks of threads, so those
are allowed on top, and instruments work with the limit suspended. Either way a trial that wants
more ends as `OutOfMemory`, with what it needed at least.
"""

from __future__ import annotations

import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from autotune.core.context import Device

HEAP_SLACK_BYTES = 32 * 2**20
"""What the heap may reserve above the limit by rounding: in measured steps of trials up to 3 MiB
were found, beside the stacks of threads."""

SPARE_THREADS = 2
"""Autograd's own, and one that watches; those that compute come twice, under each of the two that
call them."""

UNLIMITED_STACK_BYTES = 2 * 2**20
"""What the C library gives a thread where stacks are not limited."""

_REQUESTED = (
    re.compile(r"tried to allocate (\d+) bytes"),
    re.compile(r"[Tt]ried to allocate ([\d.]+) (KiB|MiB|GiB)"),
)
_UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def status_bytes(field: str) -> int:
    """Return a field of the process status, such as `"VmData"`, in bytes.

    References:
        proc_pid_status(5).
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return 0


def enforce(limit_bytes: int, device: Device, context_bytes: int) -> None:
    """Make the limit hard for this process.

    Args:
        limit_bytes: Most memory that the trial may use on the device.
        device: Where it runs.
        context_bytes: Part of it that the CUDA context takes; 0 on a CPU.
    """
    if device.kind == "cuda":
        total = torch.cuda.get_device_properties(device.index).total_memory
        share = max(0.0, limit_bytes - context_bytes) / total
        torch.cuda.set_per_process_memory_fraction(min(1.0, share), device.index)
        return
    ceiling = status_bytes("VmData") + limit_bytes + HEAP_SLACK_BYTES + stacks_bytes()
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard != resource.RLIM_INFINITY:
        ceiling = min(ceiling, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (ceiling, hard))


def stacks_bytes() -> int:
    """Return what the stacks of a trial's threads reserve: `RLIMIT_DATA` counts them whole."""
    soft, _ = resource.getrlimit(resource.RLIMIT_STACK)
    each = UNLIMITED_STACK_BYTES if soft == resource.RLIM_INFINITY else soft
    return (2 * (torch.get_num_threads() - 1) + SPARE_THREADS) * each


def widen(amount: int) -> None:
    """Allow a process on a CPU that many bytes more than its limit, if it has one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if soft == resource.RLIM_INFINITY or not amount:
        return
    wider = soft + amount
    resource.setrlimit(
        resource.RLIMIT_DATA,
        (wider if hard == resource.RLIM_INFINITY else min(wider, hard), hard),
    )


@contextmanager
def suspended() -> Iterator[None]:
    """Let an instrument have memory of its own: what it takes is not the trial's."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def lift() -> None:
    """Allow memory again after the trial failed, so that its outcome can be reported."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception is how torch, Python or the allocator say that memory is out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError | OSError) and (
        "can't allocate memory" in text
        or "not enough memory" in text
        or "Cannot allocate memory" in text
        or "can't start new thread" in text
    )


def requested_bytes(error: BaseException) -> int:
    """Return what the failed request asked for, as the allocator's message has it; else 0."""
    text = str(error)
    if match := _REQUESTED[0].search(text):
        return int(match[1])
    if match := _REQUESTED[1].search(text):
        return round(float(match[1]) * _UNITS[match[2]])
    return 0
