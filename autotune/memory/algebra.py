"""Trace algebra: from a few small rehearsals of one structure, the memory of all its sizes.

The order of a training's allocations depends neither on the micro-batch nor on the sequence length,
and sizes follow from both (`memory/laws.py`); a further block puts in the same runs of events each
time (`memory/splice.py`). So what was rehearsed at a few small scales tells the peak, its anatomy
and the stream of allocations at any other, in less than a millisecond.

Nothing is taken on trust. The first question of a structure is answered by a full rehearsal, unless
the model is deep; every law is held against a rehearsal that it was not made from, and where the
two disagree the structure counts as not algebraic, and full rehearsals answer from then on.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from autotune.core.errors import AutotuneError
from autotune.core.outcome import ANATOMY_PARTS
from autotune.memory.laws import (
    TOLERANCE,
    Peak,
    PhaseLaw,
    check,
    fixed_law,
    with_rows,
    with_tokens,
)
from autotune.memory.line import Line, NotAlgebraic, lines_of
from autotune.memory.rehearsal import Rehearsal
from autotune.memory.splice import alone, spliced
from autotune.memory.structure import Structure, scale_of, structure_of
from autotune.memory.trace import Scale, Trace
from autotune.trial.layouts.seat import ranks_of
from autotune.trial.spec import TrialSpec

DEEP = 24
"""Blocks beyond which the first question, too, is answered from shallow rehearsals."""

STEADY, EVALUATE = "steady", "evaluate"


class Tracer(Protocol):
    """Rehearses trials, and tells every event of them; see `memory/rehearsal_worker.py`."""

    def rehearse(self, spec: TrialSpec, *, record: bool = False) -> Rehearsal:
        """Return the memory of a trial, with its events if they are to be recorded.

        Raises:
            AutotuneError: If it cannot be rehearsed.
        """

    def trace(self, spec: TrialSpec, scale: Scale | None = None) -> Trace:
        """Return every event of a trial, of another scale if one is given.

        Raises:
            AutotuneError: If it cannot be rehearsed.
        """

    def close(self) -> None:
        """End what it needs."""


class Algebra:
    """Rehearses trials as a `Tracer` does, but each structure a few times only.

    Args:
        tracer: Rehearses.

    Example:
        >>> with RehearsalWorker() as worker:  # doctest: +SKIP
        ...     algebra = Algebra(worker)
        ...     [algebra.rehearse(spec).peak_bytes for spec in specs]
    """

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._known: dict[str, _Family] = {}

    def rehearse(self, spec: TrialSpec, *, record: bool = False) -> Rehearsal:
        """Return the memory of a trial: derived if its structure is known, or else rehearsed.

        Args:
            spec: The trial.
            record: Whether the events of a steady step are kept.

        Raises:
            AutotuneError: If it cannot be rehearsed.
        """
        structure = structure_of(spec)
        if structure is None or _unlike(spec):
            return self._tracer.rehearse(spec, record=record)
        scale = scale_of(spec)
        family = self._known.get(structure.key)
        if family is None:
            family = _Family(structure=structure, spec=spec, base=scale)
            self._known[structure.key] = family
            if not (structure.deep and scale.layers > DEEP):
                family.first = self._tracer.rehearse(spec, record=record)
                return family.first
        if family.first is not None and scale == family.base and not record:
            return family.first
        if family.refused:
            return self._tracer.rehearse(spec, record=record)
        began = time.process_time()
        try:
            family.reach(self._tracer, scale)
            answer = family.answer(scale, record=record, began=began)
            return _of_ranks(answer) if ranks_of(spec) > 1 else answer
        except AutotuneError as error:
            family.refused = error.message
        except NotAlgebraic as error:
            family.refused = str(error)
        return self._tracer.rehearse(spec, record=record)

    def close(self) -> None:
        """End the tracer."""
        self._tracer.close()

    def refusal(self, spec: TrialSpec) -> str | None:
        """Return why a trial's structure is rehearsed in full each time; None if it is not."""
        structure = structure_of(spec)
        if structure is None:
            return "sizes depend on the data"
        family = self._known.get(structure.key)
        return family.refused or None if family else None


def _of_ranks(rehearsal: Rehearsal) -> Rehearsal:
    """Say that a rehearsal is that of the first rank, and that all others are like it."""
    return replace(rehearsal, by_rank={0: rehearsal.peak_bytes})


def _unlike(spec: TrialSpec) -> bool:
    """Whether ranks differ: stages, servers and workers, the beginning and end of sequences."""
    config = spec.config
    split = config.get("layout.pipeline", 1), config.get("layout.context", 1)
    return split != (1, 1) or config.get("layout.data") == "server"


@dataclass(slots=True, kw_only=True)
class _Family:
    """What is known of one structure.

    Attributes:
        structure: Which.
        spec: The trial that is rehearsed at other scales.
        base: Its scale.
        first: Its full rehearsal, which what is derived is held against; None for a deep model.
        refused: Why it is not algebraic, or empty.
        laws: Each phase; empty until they are needed.
        sized: Whether laws know about micro-batch and sequence length.
        blocks: Depths that were traced.
        parameters: Those of the shallow model, and of each further block; likewise the trained.
        seconds: CPU seconds of everything that was rehearsed for it.
        note: What could not be followed.
    """

    structure: Structure
    spec: TrialSpec
    base: Scale
    first: Rehearsal | None = None
    refused: str = ""
    laws: dict[str, PhaseLaw] = field(default_factory=dict)
    sized: bool = False
    blocks: tuple[int, ...] = ()
    parameters: tuple[int, int, int, int] = (0, 0, 0, 0)
    seconds: float = 0.0
    note: str = ""
    causes: dict[tuple[str, str], int] = field(default_factory=dict)
    names: tuple[tuple[str, str], ...] = ()
    shallow: dict[str, Line] = field(default_factory=dict)
    unit: int = 1

    def reach(self, tracer: Tracer, scale: Scale) -> None:
        """See that a scale can be answered, and rehearse what is missing for it.

        Raises:
            NotAlgebraic: If it cannot.
            AutotuneError: If something cannot be rehearsed.
        """
        if not self.laws:
            self._go_deep(tracer)
            self._hold_against_first()
        alike = (scale.micro_batch, scale.sequence_length) == (
            self.base.micro_batch,
            self.base.sequence_length,
        )
        if not alike and not self.sized:
            self._go_wide(tracer)
            self.sized = True

    def answer(self, scale: Scale, *, record: bool, began: float) -> Rehearsal:
        """Return the memory at a scale that was reached."""
        more = self._more(scale)
        peaks = {phase: law.peak(scale, more) for phase, law in self.laws.items()}
        counted = peaks
        if self.spec.facts.workload.purpose == "inference":
            counted = {EVALUATE: peaks[EVALUATE]}
        phase = max(counted, key=lambda phase: counted[phase].bytes)
        shown = STEADY if STEADY in counted else phase
        events = self.laws[shown].stream(scale, more) if record else ()
        within, operator = self.names[peaks[phase].cause]
        parameters, by_block, trained, trained_by_block = self.parameters
        return Rehearsal(
            peak_bytes=peaks[phase].bytes,
            phase=phase,
            within=within,
            operator=operator,
            anatomy=_anatomy(peaks[shown]),
            peaks={phase: peak.bytes for phase, peak in peaks.items()},
            parameters=parameters + more * by_block,
            trained_parameters=trained + more * trained_by_block,
            events=events,
            seconds=round(time.process_time() - began, 5),
            note=self.note,
            derived=self._source(scale),
        )

    def _more(self, scale: Scale) -> int:
        return (scale.layers - self.blocks[0]) // self.structure.stride

    def _source(self, scale: Scale) -> str:
        if len(self.blocks) == 1:
            return "Derived from rehearsals of other batches."
        depths = ", ".join(map(str, self.blocks))
        return f"Derived from rehearsals of {depths} of its {scale.layers} blocks."

    def _trace(self, tracer: Tracer, scale: Scale) -> tuple[Trace, dict[str, Line]]:
        trace = tracer.trace(self.spec, scale)
        self.seconds += trace.seconds
        return trace, lines_of(trace, self.causes)

    def _go_deep(self, tracer: Tracer) -> None:
        """Rehearse the shallowest model, and two deeper ones, if there are any."""
        depths = [self.base.layers]
        if self.structure.deep:
            shallow = self.structure.shallow(self.base.layers)
            depths = [shallow + self.structure.stride * more for more in range(3)]
        seen = [self._trace(tracer, replace(self.base, layers=depth)) for depth in depths]
        traces, lines = [trace for trace, _ in seen], [line for _, line in seen]
        self.parameters = _growth(traces)
        self.note, self.unit = traces[0].note, traces[0].unit
        self.shallow = lines[0]
        self.blocks = tuple(depths)
        for phase, line in lines[0].items():
            made = alone(line) if len(lines) == 1 else spliced(*(line[phase] for line in lines))
            self.laws[phase] = PhaseLaw.of(made, fixed_law(line, self.base), self.unit)
        self.names = tuple(self.causes)

    def _go_wide(self, tracer: Tracer) -> None:
        """Rehearse other micro-batches and sequence lengths, and one scale to check them by."""
        structure, layers = self.structure, self.blocks[0]
        base = replace(self.base, layers=layers)
        rows, length = base.micro_batch, base.sequence_length
        laws = {phase: law.law for phase, law in self.laws.items()}
        last = base
        if structure.widens:
            wider = replace(base, micro_batch=2 * rows)
            for phase, line in self._trace(tracer, wider)[1].items():
                laws[phase] = with_rows(laws[phase], self.shallow[phase], line, 2 * rows)
            last = replace(last, micro_batch=3 * rows)
        if structure.stretches:
            second, third = structure.further_lengths(length)
            longer = replace(base, sequence_length=second)
            for phase, line in self._trace(tracer, longer)[1].items():
                laws[phase] = with_tokens(laws[phase], self.shallow[phase], line, second)
            last = replace(last, sequence_length=third)
        more = 1 if len(self.blocks) > 1 else 0
        last = replace(last, layers=layers + more * structure.stride)
        for phase, line in self._trace(tracer, last)[1].items():
            check(self.laws[phase].spliced, laws[phase], line, last, more)
            self.laws[phase] = PhaseLaw.of(self.laws[phase].spliced, laws[phase], self.unit)

    def _hold_against_first(self) -> None:
        if self.first is None:
            return
        more = self._more(self.base)
        for phase, seen in self.first.peaks.items():
            derived = self.laws[phase].peak(self.base, more).bytes
            if abs(derived - seen) > TOLERANCE * seen:
                raise NotAlgebraic(f"{derived} bytes were derived where {seen} were rehearsed")


def _anatomy(peak: Peak) -> Mapping[str, int]:
    return {part: peak.parts.get(place, 0) for place, part in enumerate(ANATOMY_PARTS)}


def _growth(traces: list[Trace]) -> tuple[int, int, int, int]:
    """Return parameters of the shallow model and of each further block; likewise the trained.

    Raises:
        NotAlgebraic: If blocks have different numbers of them.
    """
    whole = [trace.parameters for trace in traces]
    trained = [trace.trained_parameters for trace in traces]
    steps = [{b - a for a, b in itertools.pairwise(c)} for c in (whole, trained)]
    if any(len(step) > 1 for step in steps):
        raise NotAlgebraic("blocks have different numbers of parameters")
    each = [step.pop() if step else 0 for step in steps]
    return whole[0], each[0], trained[0], each[1]
