"""Peaks by phase: exact and cheap on both kinds of device.

CUDA: the caching allocator counts allocated and reserved bytes by itself, so whole phases are
measured; NVML tells what the process holds on the device, context included.

CPU: torch's allocator reports every allocation to the profiler, which gives tensor bytes to the
byte, and the kernel keeps the high-water mark of the resident set, which follows them within a few
MiB once `malloc` returns freed memory at once. Both cost time, so they are applied to single steps:
one counts tensors, the next the resident set, and the rest of the training runs free. Two steps are
enough since the first batches are as large as any (`trial/objective.py`).

References:
    PyTorch documentation, CUDA memory management; mallopt(3); proc(5), `clear_refs`.
"""

from __future__ import annotations

import ctypes
import gc
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.profiler import ProfilerActivity, profile

from autotune.core.context import Device
from autotune.core.outcome import Peak, PeakKind, Phase
from autotune.trial.limits import status_bytes

FIRST_STEPS = 2
"""Steps of the first phase: optimizer states come to be in one, and are there in the next."""

MEASURED_STEPS = 4
"""Steps at the start of a training that carry instruments: the first ones and as many steady."""

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_TIGHT, _RELAXED = 64 * 2**10, 32 * 2**20
_SAMPLE_SECONDS = 0.005


class Meter(Protocol):
    """Measures the phases of one trial on one device."""

    context_bytes: int
    """What the device holds for the process before any tensor; 0 on a CPU."""

    def load(self) -> AbstractContextManager[None]:
        """Measure the phase in which the model comes to be."""

    def instrument(
        self, phase: Phase, index: int, held: Callable[[], int]
    ) -> AbstractContextManager[None]:
        """Measure one step, or one evaluation batch.

        Args:
            phase: Which phase it belongs to.
            index: Number of the step within the trial; instruments may alternate.
            held: Bytes of the tensors that are live when the step begins.
        """

    def peaks(self) -> tuple[Peak, ...]:
        """Return the greatest value of each kind in each phase so far."""


class _Peaks:
    """The greatest value by phase and kind."""

    def __init__(self) -> None:
        self._values: dict[tuple[Phase, PeakKind], int] = {}

    def note(self, phase: Phase, kind: PeakKind, value: int) -> None:
        self._values[phase, kind] = max(value, self._values.get((phase, kind), 0))

    def peaks(self) -> tuple[Peak, ...]:
        return tuple(
            Peak(phase=phase, kind=kind, bytes=value)
            for (phase, kind), value in self._values.items()
        )


class CpuMeter(_Peaks):
    """Tensor bytes by the profiler, resident set by the kernel; see the module."""

    context_bytes = 0

    def __init__(self) -> None:
        super().__init__()
        with _tight_malloc():  # what the heap kept from before is not the trial's
            self._anonymous_at_start = status_bytes("RssAnon")

    @contextmanager
    def load(self) -> Iterator[None]:
        """Count tensors exactly and sample the anonymous resident set.

        Weights that are read through a memory map are file pages that the kernel may drop, so the
        high-water mark, which holds them, would be too strict here.
        """
        with _tight_malloc(), _sampled_anonymous() as sample, _tensor_peak() as tensors:
            yield
        self.note(Phase.LOAD, PeakKind.ALLOCATED, tensors())
        self.note(Phase.LOAD, PeakKind.RESIDENT, max(0, sample() - self._anonymous_at_start))

    @contextmanager
    def instrument(self, phase: Phase, index: int, held: Callable[[], int]) -> Iterator[None]:
        """Count tensors in even steps, the resident set in odd ones, of the measured steps."""
        if phase is not Phase.EVALUATE and index >= MEASURED_STEPS:
            yield
        elif index % 2 == 0:
            before = held()
            with _tensor_peak() as tensors:
                yield
            self.note(phase, PeakKind.ALLOCATED, before + tensors())
        else:
            with _tight_malloc():
                _reset_high_water()
                yield
                anonymous = status_bytes("VmHWM") - status_bytes("RssFile")
            self.note(phase, PeakKind.RESIDENT, max(0, anonymous - self._anonymous_at_start))


class CudaMeter(_Peaks):
    """The caching allocator's own counters, and NVML for the process."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self._index = device.index
        before = _device_used(device.index)
        torch.cuda.set_device(device.index)
        torch.zeros(1, device=device.label)
        held = _process_used(device.index)
        used = held if held is not None else max(0, _device_used(device.index) - before)
        self.context_bytes = max(0, used - torch.cuda.memory_reserved(device.index))

    def load(self) -> AbstractContextManager[None]:
        """Measure the phase in which the model comes to be."""
        return self.instrument(Phase.LOAD, 0, lambda: 0)

    @contextmanager
    def instrument(self, phase: Phase, index: int, held: Callable[[], int]) -> Iterator[None]:
        """Read the allocator's peaks over the step, and the process on the device after it."""
        torch.cuda.reset_peak_memory_stats(self._index)
        yield
        torch.cuda.synchronize(self._index)
        reserved = torch.cuda.max_memory_reserved(self._index)
        self.note(phase, PeakKind.ALLOCATED, torch.cuda.max_memory_allocated(self._index))
        self.note(phase, PeakKind.RESERVED, reserved)
        if index < MEASURED_STEPS or phase is Phase.EVALUATE:
            process = _process_used(self._index)
            self.note(phase, PeakKind.DEVICE, max(process or 0, reserved + self.context_bytes))


def make_meter(device: Device) -> Meter:
    """Return the meter for a kind of device; initialises CUDA if that is the kind."""
    return CudaMeter(device) if device.kind == "cuda" else CpuMeter()


@contextmanager
def _tensor_peak() -> Iterator[Callable[[], int]]:
    """Yield a function that tells, afterwards, by how much live tensor bytes rose at most."""
    gc.collect()
    profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    result = 0

    def peak() -> int:
        return result

    with profiler:
        yield peak
    if profiler.profiler is not None and profiler.profiler.kineto_results is not None:
        result = _rise(profiler.profiler.kineto_results.experimental_event_tree())
    # The profiler holds its events in a cycle; left alone, they would count as the next step's.
    profiler.profiler = None
    gc.collect()


def _rise(roots: list[Any]) -> int:
    """Return the greatest rise of the allocator's total over its value before the first event.

    The profiler's total goes on from one session to the next of a process, hence the difference.
    """
    stack, events = list(roots), []
    while stack:
        event = stack.pop()
        stack.extend(event.children)
        fields: Any = getattr(event, "extra_fields", None)
        if hasattr(fields, "total_allocated") and fields.device.type == "cpu":
            events.append((event.start_time_ns, fields.total_allocated, fields.alloc_size))
    if not events:
        return 0
    first = min(events, key=lambda event: event[0])
    return int(max(0, max(total for _, total, _ in events) - (first[1] - first[2])))


@contextmanager
def _tight_malloc() -> Iterator[None]:
    """Have `malloc` return freed memory at once, so that the resident set follows live tensors."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):  # musl keeps nothing back and knows no options
        yield
        return
    libc.malloc_trim(0)
    for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD, _M_TOP_PAD):
        libc.mallopt(option, _TIGHT)
    try:
        yield
    finally:
        libc.mallopt(_M_MMAP_THRESHOLD, _RELAXED)
        libc.mallopt(_M_TRIM_THRESHOLD, 2 * _RELAXED)


def _reset_high_water() -> None:
    """Set the high-water mark of the resident set to what it is now."""
    Path("/proc/self/clear_refs").write_text("5")


@contextmanager
def _sampled_anonymous() -> Iterator[Callable[[], int]]:
    """Yield a function that tells, afterwards, the greatest anonymous resident set, in bytes."""
    done = threading.Event()
    seen = [status_bytes("RssAnon")]

    def sample() -> None:
        while not done.wait(_SAMPLE_SECONDS):
            seen.append(max(seen.pop(), status_bytes("RssAnon")))

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield lambda: max(seen)
    finally:
        done.set()
        thread.join()
        seen.append(status_bytes("RssAnon"))


def _process_used(index: int) -> int | None:
    """Return what NVML says that this process holds on a device; None if it cannot tell.

    In a container, NVML may list processes by the host's numbers and so not know this one.
    """
    import pynvml

    try:
        pynvml.nvmlInit()
        device = pynvml.nvmlDeviceGetHandleByIndex(_physical_index(index))
        for process in pynvml.nvmlDeviceGetComputeRunningProcesses(device):
            if process.pid == os.getpid() and process.usedGpuMemory is not None:
                return int(process.usedGpuMemory)
    except pynvml.NVMLError:
        return None
    return None


def _device_used(index: int) -> int:
    """Return what NVML says is used on a device by anyone, in bytes; 0 if it cannot tell."""
    import pynvml

    try:
        pynvml.nvmlInit()
        device = pynvml.nvmlDeviceGetHandleByIndex(_physical_index(index))
        return int(pynvml.nvmlDeviceGetMemoryInfo(device).used)
    except pynvml.NVMLError:
        return 0


def _physical_index(index: int) -> int:
    """Translate a torch index to NVML's, which knows nothing of CUDA_VISIBLE_DEVICES."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = [name.strip() for name in visible.split(",") if name.strip().isdigit()]
    return int(names[index]) if index < len(names) else index
