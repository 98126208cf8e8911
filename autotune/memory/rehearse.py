"""A trial without running it: the same code on fake tensors, every live storage counted.

There are no formulas here. `trial/lifecycle.py` runs as it always does, on stand-ins for weights
and data (`memory/stand_ins.py`): two steps, of which the first makes the optimizer's states, and
one batch of the evaluation. What an operator would allocate, fake tensors know; when it is freed,
Python and autograd decide as they always do.

Loading counts, too. A model of random weights is built as a trial builds it. Weights that are read
from a file as they are stay in its memory map, which no allocator knows of, and what is made of
them counts. On CUDA the model comes to be on the host, and what counts is what is moved.

What a rehearsal leaves out: the part `inputs` of the anatomy, since the copy of a batch on the
device is made by an operator like any other and counts as an activation; and scratch that a kernel
takes and gives back inside of one operator, as those of recurrent layers do, and products in bf16
on a CPU that has instructions for them. Units that are pruned gradually are counted three vectors
of a mask's size too high for each layer, 0.02 % of a small GPT-2; why is not known.
"""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace

from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)

from autotune.core.errors import AutotuneError
from autotune.core.knob import run_stage
from autotune.core.outcome import ANATOMY_PARTS, Peak, PeakKind, Phase
from autotune.knobs.accumulation import ACCUMULATION
from autotune.knobs.stages import STEP, StepPlan
from autotune.memory.fake_device import NoFakeDevice, install
from autotune.memory.rehearsal import CannotRehearse, Rehearsal
from autotune.memory.stand_ins import CUDA_UNIT, FakeStandIns, Followed, Size, surroundings
from autotune.memory.trace import MOVED, Events, Scale, Trace
from autotune.trial.anatomy import Allocation, LiveStorages
from autotune.trial.layouts.team import Team
from autotune.trial.lifecycle import run_trial
from autotune.trial.progress import Progress
from autotune.trial.spec import TrialSpec

_UNTRACEABLE = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)


def rehearse(
    spec: TrialSpec,
    *,
    semantics: str | None = None,
    record: bool = False,
    team: Team | None = None,
) -> Rehearsal:
    """Find out the memory of a trial, or of one of its ranks.

    With CUDA semantics on a machine without CUDA, the process must not have done a backward pass
    before the first rehearsal; `memory/rehearsal_worker.py` has one that has not.

    Args:
        spec: The trial. Its evaluation is rehearsed, too, unless it is a probe.
        semantics: `"cpu"` or `"cuda"`; that of the spec's device by default.
        record: Whether the events of a steady step are kept, or where inference counts, those of
            the evaluation.
        team: The ranks of which one is rehearsed; None for a trial of one rank.

    Returns:
        Its peaks and their anatomy.

    Raises:
        CannotRehearse: If the trial does something that fake tensors cannot follow.
        AutotuneError: What the trial itself raises, such as for a model that cannot be loaded.
    """
    counted = Phase.EVALUATE if spec.facts.workload.purpose == "inference" else Phase.STEADY
    recorded = frozenset({counted}) if record else frozenset()
    semantics = semantics or spec.device.kind
    unit = CUDA_UNIT if semantics == "cuda" else 1
    ran = _run(spec, semantics, recorded, unit=unit, team=team)
    return _rehearsal(ran, spec.facts.workload.purpose)


def trace(spec: TrialSpec, scale: Scale | None = None, team: Team | None = None) -> Trace:
    """Rehearse a trial and keep every event, so that other scales can be told from it.

    Args:
        spec: The trial.
        scale: Its size, if it is to be another one: fewer blocks, and batches that are cut or
            repeated to have as many rows and columns.
        team: The ranks of which one is traced; None for a trial of one rank.

    Raises:
        CannotRehearse: If fake tensors cannot follow the trial.
        AutotuneError: What the trial itself raises, such as for a model that cannot be cut.
    """
    unit = CUDA_UNIT if spec.device.kind == "cuda" else 1
    ran = _run(spec, spec.device.kind, frozenset(Phase), scale=scale, team=team)
    parts = {part: place for place, part in enumerate(ANATOMY_PARTS)}
    causes: dict[tuple[str, str], int] = {}
    phases = {
        str(phase): _columns(found.events, parts, causes)
        for phase, found in ran.meter.found.items()
        if found.events
    }
    return Trace(
        phases=phases,
        parts=tuple(parts),
        causes=tuple(causes),
        unit=unit,
        parameters=ran.progress.parameters,
        trained_parameters=ran.progress.trained_parameters,
        seconds=round(ran.seconds, 4),
        note=ran.note,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ran:
    """A trial that ran on stand-ins."""

    meter: RehearsalMeter
    progress: Progress
    seconds: float
    note: str


def _run(
    spec: TrialSpec,
    semantics: str,
    recorded: frozenset[Phase],
    *,
    unit: int = 1,
    scale: Scale | None = None,
    team: Team | None = None,
) -> _Ran:
    """Run a trial on stand-ins; `recorded` are the phases whose events are kept."""
    began = time.process_time()
    on_cuda = semantics == "cuda"
    kind, note = _stand_in_device(semantics)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    storages = Followed(kind, unit=unit)
    meter = RehearsalMeter(storages, recorded=recorded)
    progress = Progress(meter=meter, report=_unheard)
    builds = not on_cuda and not spec.facts.model.pretrained
    stand_ins = FakeStandIns(
        storages, counts_batches=on_cuda, size=_size(spec, scale), builds=builds
    )
    here = replace(spec, device=replace(spec.device, kind=kind, index=0), checkpoint="")
    with _no_collections(), mode, storages, surroundings(storages, cuda=on_cuda):
        failure = _attempt(lambda: run_trial(here, progress, stand_ins, team))
    if failure is not None:
        trained = Phase.STEADY in meter.found or spec.facts.workload.steps == 1
        if not trained or spec.facts.workload.purpose == "inference":
            raise failure
        note = " ".join(filter(None, (note, f"The evaluation is not counted: {failure.message}.")))
    if on_cuda and kind == "cpu":
        stand_ins.not_loaded = "on CPU tensors, the host's memory cannot be told from the device's"
    if stand_ins.not_loaded:
        meter.found.pop(Phase.LOAD, None)
        note = " ".join(filter(None, (note, f"Loading is not counted: {stand_ins.not_loaded}.")))
    return _Ran(meter=meter, progress=progress, seconds=time.process_time() - began, note=note)


def _size(spec: TrialSpec, scale: Scale | None) -> Size | None:
    if scale is None:
        return None
    plan = run_stage(STEP, StepPlan(), (ACCUMULATION,), spec.config)
    return Size(
        layers=scale.layers if scale.layers != spec.facts.model.layers else 0,
        rows=scale.micro_batch * plan.accumulation,
        columns=scale.sequence_length,
    )


def _columns(
    events: Iterable[Allocation], parts: dict[str, int], causes: dict[tuple[str, str], int]
) -> Events:
    """Turn events into columns; parts and causes that are new get the next number."""
    rows: list[tuple[int, int, int, int]] = []
    live: dict[int, tuple[int, int]] = {}
    names: dict[int, str] = {}
    for event in events:
        part = parts.setdefault(event.part, len(parts))
        operator = names.get(id(event.operator))
        if operator is None:
            operator = names[id(event.operator)] = str(event.operator)
        if event.bytes == 0:
            if event.storage not in live:
                continue  # what FSDP has given back has no bytes to move
            cause = causes.setdefault((event.phase, MOVED), len(causes))
            size, before = live[event.storage]
            rows += [(event.storage, -size, before, cause), (event.storage, size, part, cause)]
            live[event.storage] = (size, part)
            continue
        cause = causes.setdefault((event.phase, operator), len(causes))
        if event.bytes > 0:
            live[event.storage] = (event.bytes, part)
        rows.append((event.storage, event.bytes, part, cause))
    storages, sizes, held, why = zip(*rows, strict=True)
    return Events(storages=storages, bytes=sizes, parts=held, causes=why)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The peak of one step, or of one evaluation."""

    bytes: int
    within: str
    operator: str
    parts: dict[str, int]
    events: tuple[Allocation, ...]


class RehearsalMeter:
    """Reads peaks off the storages that are followed; see `trial.measure.Meter`.

    Args:
        storages: What is followed.
        recorded: Phases whose events are kept.

    Attributes:
        found: The peak of each phase.
    """

    context_bytes = 0

    def __init__(self, storages: LiveStorages, *, recorded: Container[Phase]) -> None:
        self.found: dict[Phase, Found] = {}
        self._storages = storages
        self._recorded = recorded

    def load(self) -> AbstractContextManager[None]:
        """Find the peak of the phase in which the model comes to be."""
        return self._followed(Phase.LOAD, "load")

    def instrument(
        self, phase: Phase, index: int, held: Callable[[], int]
    ) -> AbstractContextManager[None]:
        """Find the peak of a step, or of an evaluation."""
        return self._followed(phase, "forward")

    @contextmanager
    def _followed(self, phase: Phase, within: str) -> Iterator[None]:
        gc.collect()
        storages = self._storages
        storages.enter(within)
        storages.restart(record=phase in self._recorded)
        yield
        self.found[phase] = Found(
            bytes=storages.peak_bytes,
            within=storages.peak_phase,
            operator=storages.peak_operator,
            parts=storages.peak_parts,
            events=tuple(storages.events or ()),
        )

    def peaks(self) -> tuple[Peak, ...]:
        """Return the peak of each phase so far."""
        return tuple(
            Peak(phase=phase, kind=PeakKind.ALLOCATED, bytes=found.bytes)
            for phase, found in self.found.items()
        )


def _stand_in_device(semantics: str) -> tuple[str, str]:
    """Return the kind of device that fakes are on, and what a reader should know of it."""
    if semantics != "cuda":
        return "cpu", ""
    try:
        install()
    except NoFakeDevice as error:
        return "cpu", (
            f"CPU tensors with the attention kernels of CUDA stand in for CUDA tensors: {error}."
        )
    return "cuda", ""


@contextmanager
def _no_collections() -> Iterator[None]:
    """Leave collecting to the beginning of each step: walking over a graph of fakes takes long."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _attempt(run: Callable[[], object]) -> CannotRehearse | None:
    """Run a trial on stand-ins; return what it could not do.

    Raises:
        AutotuneError: What is wrong with the trial itself, and not with rehearsing it.
    """
    try:
        run()
    except CannotRehearse as error:
        return error
    except AutotuneError:
        raise
    except _UNTRACEABLE as error:
        return CannotRehearse(f"an operator cannot be followed without values: {error}")
    except Exception as error:  # noqa: BLE001  what a plug-in does on fakes cannot be foreseen
        traceback.print_exc()
        return CannotRehearse(f"the rehearsal failed with {type(error).__name__}: {error}")
    return None


def _rehearsal(ran: _Ran, purpose: str) -> Rehearsal:
    found = ran.meter.found
    if purpose == "inference":
        found = {Phase.EVALUATE: found[Phase.EVALUATE]}
    phase = max(found, key=lambda phase: found[phase].bytes)
    stepped = found.get(Phase.FIRST, found[phase])
    shown = found.get(Phase.STEADY, stepped)
    return Rehearsal(
        peak_bytes=found[phase].bytes,
        phase=str(phase),
        within=found[phase].within,
        operator=found[phase].operator,
        anatomy={part: shown.parts.get(part, 0) for part in ANATOMY_PARTS},
        peaks={str(phase): found.bytes for phase, found in ran.meter.found.items()},
        parameters=ran.progress.parameters,
        trained_parameters=ran.progress.trained_parameters,
        events=tuple((event.storage, event.bytes) for event in shown.events if event.bytes),
        seconds=round(ran.seconds, 4),
        note=ran.note,
    )


def _unheard(kind: str, data: dict[str, object]) -> None:
    """Take reports that nobody waits for."""
