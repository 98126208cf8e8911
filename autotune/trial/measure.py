"""Peaks by phase: exact and cheap on both kinds of device.

CUDA: the caching allocator counts allocated and reserved bytes by itself, so whole phases are
measured; NVML tells what the process holds on the device, context included.

CPU: torch's allocator reports every allocation to the profiler, which gives tensor bytes to the
byte, and the kernel keeps the high-water mark of the resident set, which follows them within a few
MiB as long as `malloc` returns freed memory at once. It has to do so from the first step on: blocks
that it kept once lie between others, are handed out again before new memory is, and stay resident
whether they are used or not; a sixth of the peak was found to be such holes. All of this costs
time, so it is applied to single steps: one counts tensors, the next the resident set, and the rest
of the training runs free, with what `malloc` then keeps allowed on top of the limit. Two steps are
enough since the first batches are as large as any (`trial/objective.py`).

What the instruments need is not the trial's. The profiler notes allocations and no operators, which
takes 48 bytes for each, and turns them into events when the peak is over and outside of the limit.

References:
    PyTorch documentation, CUDA memory management; mallopt(3); proc(5), `clear_refs`.
"""

from __future__ import annotations

import ctypes
import gc
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from torch._C import _autograd  # what torch.profiler is made of; only this tells what to record
from torch._C._profiler import RecordScope
from torch.autograd.profiler import profile

from autotune.core.context import Device
from autotune.core.outcome import Peak, PeakKind, Phase
from autotune.trial.limits import status_bytes, suspended, widen

FIRST_STEPS = 2
"""Steps of the first phase: optimizer states come to be in one, and are there in the next."""

MEASURED_STEPS = 4
"""Steps at the start of a training that carry instruments: the first ones and as many steady."""

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_TIGHT, _RELAXED = 64 * 2**10, 32 * 2**20
_SAMPLE_SECONDS = 0.005
_MOST_ENTRIES = 200_000


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
        self._kept_bytes = 0
        with _tight_malloc():  # what the heap kept from before is not the trial's
            self._anonymous_at_start = status_bytes("RssAnon")

    @contextmanager
    def load(self) -> Iterator[None]:
        """Count tensors exactly and sample the anonymous resident set.

        Weights that are read through a memory map are file pages that the kernel may drop, so the
        high-water mark, which holds them, would be too strict here.
        """
        with _tight_malloc(), _tensor_peak() as tensors, _sampled_anonymous() as sample:
            yield
        self.note(Phase.LOAD, PeakKind.ALLOCATED, tensors())
        self.note(Phase.LOAD, PeakKind.RESIDENT, max(0, sample() - self._anonymous_at_start))

    @contextmanager
    def instrument(self, phase: Phase, index: int, held: Callable[[], int]) -> Iterator[None]:
        """Count tensors in even steps, the resident set in odd ones, of the measured steps."""
        if phase is not Phase.EVALUATE and index >= MEASURED_STEPS:
            yield
            return
        with _tight_malloc():
            if index % 2 == 0:
                before = held()
                with _tensor_peak() as tensors:
                    yield
                self.note(phase, PeakKind.ALLOCATED, before + tensors())
            else:
                _reset_high_water()
                yield
                anonymous = status_bytes("VmHWM") - status_bytes("RssFile")
                self.note(phase, PeakKind.RESIDENT, max(0, anonymous - self._anonymous_at_start))
        if phase is Phase.EVALUATE or index == MEASURED_STEPS - 1:
            self._allow_for_holes()

    def _allow_for_holes(self) -> None:
        """Allow what `malloc` keeps between blocks: no more than was ever in use."""
        most = max((p.bytes for p in self.peaks() if p.kind is PeakKind.RESIDENT), default=0)
        widen(max(0, most - self._kept_bytes))
        self._kept_bytes = max(most, self._kept_bytes)


class CudaMeter(_Peaks):
    """The caching allocator's own counters, and NVML for the process.

    Args:
        device: Which one.
        snapshot: File for torch's own snapshot of the first steady step; empty for none, since
            recording every allocation with its stack takes time.
    """

    def __init__(self, device: Device, snapshot: str = "") -> None:
        super().__init__()
        self._index = device.index
        self._snapshot = snapshot
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
        path = ""
        if phase is Phase.STEADY:
            path, self._snapshot = self._snapshot, ""
        with allocator_history(path) if path else nullcontext():
            yield
        torch.cuda.synchronize(self._index)
        reserved = torch.cuda.max_memory_reserved(self._index)
        self.note(phase, PeakKind.ALLOCATED, torch.cuda.max_memory_allocated(self._index))
        self.note(phase, PeakKind.RESERVED, reserved)
        if index < MEASURED_STEPS or phase is Phase.EVALUATE:
            process = _process_used(self._index)
            self.note(phase, PeakKind.DEVICE, max(process or 0, reserved + self.context_bytes))


def make_meter(device: Device, snapshot: str = "") -> Meter:
    """Return the meter for a kind of device; initialises CUDA if that is the kind.

    Args:
        device: Where the trial runs.
        snapshot: File for torch's own snapshot of a step on CUDA; empty for none. A CPU's allocator
            has none.
    """
    return CudaMeter(device, snapshot) if device.kind == "cuda" else CpuMeter()


@contextmanager
def allocator_history(path: str) -> Iterator[None]:
    """Have the caching allocator record what it does, and keep torch's own snapshot of it.

    It is written also if what runs fails: out of memory is when it is wanted most.

    Args:
        path: File of the snapshot, as pytorch.org/memory_viz reads it.
    """
    memory = torch.cuda.memory  # documented there, though the names begin with an underscore
    memory._record_memory_history(max_entries=_MOST_ENTRIES, stacks="python")
    try:
        yield
    finally:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        memory._dump_snapshot(path)
        memory._record_memory_history(enabled=None)


@contextmanager
def _tensor_peak() -> Iterator[Callable[[], int]]:
    """Yield a function that tells, afterwards, by how much live tensor bytes rose at most."""
    gc.collect()
    result = 0

    def peak() -> int:
        return result

    options = profile(profile_memory=True)
    activities = options.kineto_activities
    _autograd._prepare_profiler(options.config(), activities)
    _autograd._enable_profiler(
        options.config(),
        activities,
        {RecordScope.USER_SCOPE},  # type: ignore[call-arg]  # the stub does not know of scopes
    )
    try:
        yield peak
    finally:
        with suspended():
            result = _rise(_autograd._disable_profiler().experimental_event_tree())
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
