"""The memory of one step from its first allocation to its last free, part by part.

A rehearsal has every event of a step in order (`memory/trace.py`). A timeline is what a reader can
see of that: a few hundred moments with the live bytes of each part, and where forward, backward and
the optimizer begin. A rehearsal knows no time, so moments are numbered by events. Of each stretch
the greatest and the least moment are kept, so the peak is exact however many events there were.

It is plain data without torch, small enough to lie beside a trial's log.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from autotune.core.errors import StorageError
from autotune.core.outcome import Phase
from autotune.memory.trace import MOVED, Events, Trace

MOST_MOMENTS = 300
"""Moments of a timeline, at most: about as many as a figure has pixels to show them."""

STAGES: Mapping[str, str] = {
    "forward": "forward",
    "head": "forward",
    "backward": "backward",
    "optimizer": "optimizer",
}
"""What a reader calls the parts of a step, by what a trace does."""

_SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """Live bytes over one step.

    Attributes:
        phase: What was rehearsed: `"steady"`, `"first"` or `"evaluate"`.
        events: Allocations and frees that there were.
        moments: How many of them came before each moment, from 0, the start of the step.
        parts: Live bytes of each part at each moment, shape `(moments,)`; parts that are never
            there are left out.
        stages: Each stage in the order in which they come, and how many events came before it: with
            accumulation, forward and backward come once for each micro-batch.
        peaks: Most live bytes in each kind of stage, exact.
        operator: The operator that had just run at the peak.
    """

    phase: str
    events: int
    moments: tuple[int, ...]
    parts: Mapping[str, tuple[int, ...]]
    stages: tuple[tuple[str, int], ...]
    peaks: Mapping[str, int]
    operator: str = ""

    @property
    def totals(self) -> tuple[int, ...]:
        """Live bytes at each moment."""
        return tuple(map(sum, zip(*self.parts.values(), strict=True)))

    @property
    def peak_bytes(self) -> int:
        """Most live bytes."""
        return max(self.totals)

    @property
    def peak_moment(self) -> int:
        """Place of the peak among the moments."""
        return max(range(len(self.moments)), key=self.totals.__getitem__)

    @property
    def peak_stage(self) -> str:
        """The stage that has the peak."""
        return max(self.peaks, key=lambda stage: self.peaks[stage])

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a JSON object."""
        return {"schema": _SCHEMA, **asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Timeline:
        """Rebuild the timeline from the JSON object of `to_json`.

        Raises:
            StorageError: If it is not one, or one of a later version.
        """
        if data.get("schema") != _SCHEMA:
            raise StorageError(f"schema {data.get('schema')!r} of timelines is not known here")
        try:
            return cls(
                phase=str(data["phase"]),
                events=int(data["events"]),
                moments=tuple(map(int, data["moments"])),
                parts={str(p): tuple(map(int, column)) for p, column in data["parts"].items()},
                stages=tuple((str(stage), int(begin)) for stage, begin in data["stages"]),
                peaks={str(stage): int(peak) for stage, peak in data["peaks"].items()},
                operator=str(data["operator"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StorageError(f"it is no timeline: {error!r}") from error


def timeline_of(trace: Trace, purpose: str = "training") -> Timeline:
    """Return the timeline of a steady step; where inference counts, of a batch of the evaluation.

    Args:
        trace: Of a trial; see `memory/rehearse.py`.
        purpose: `"training"` or `"inference"`.
    """
    phase = Phase.EVALUATE if purpose == "inference" else Phase.STEADY
    if phase not in trace.phases:  # a training of one step has no steady one
        phase = Phase.FIRST
    events = trace.phases[phase]
    history = list(_history(trace, events))
    begin = history[0][0]
    kept = _kept([sum(live) for _, live in history])
    parts = {
        part: tuple(history[place][1][number] for place in kept)
        for number, part in enumerate(trace.parts)
    }
    peaks: dict[str, int] = {}
    for event, live in history:
        stage = _stage(trace, events, event)
        peaks[stage] = max(peaks.get(stage, 0), sum(live))
    top = max(history, key=lambda moment: sum(moment[1]))[0]
    return Timeline(
        phase=str(phase),
        events=len(events) - begin,
        moments=tuple(history[place][0] - begin for place in kept),
        parts={part: column for part, column in parts.items() if any(column)},
        stages=tuple((stage, at - begin) for stage, at in _stages(trace, events)),
        peaks=peaks,
        operator=trace.causes[events.causes[top - 1]][1] if top else "",
    )


def _history(trace: Trace, events: Events) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Yield the live bytes by part at the start and after each event, with the events so far.

    Half of a move, after which a storage is nowhere, is no moment, nor is the count of what was
    there before.
    """
    live = [0] * len(trace.parts)
    columns = zip(events.bytes, events.parts, events.causes, strict=True)
    begun = False
    for number, (change, part, cause) in enumerate(columns, 1):
        step, operator = trace.causes[cause]
        if step != "before" and not begun:
            begun = True
            yield number - 1, tuple(live)
        live[part] += change
        if begun and not (operator == MOVED and change < 0):
            yield number, tuple(live)
    if not begun:
        yield len(events), tuple(live)


def _stage(trace: Trace, events: Events, event: int) -> str:
    """Return what went on when an event was the last; before all of them, what comes first."""
    step = trace.causes[events.causes[event - 1]][0] if event else "before"
    return STAGES.get(step, "forward" if step == "before" else step)


def _stages(trace: Trace, events: Events) -> tuple[tuple[str, int], ...]:
    found: list[tuple[str, int]] = []
    for event in range(1, len(events) + 1):
        if trace.causes[events.causes[event - 1]][0] == "before":
            continue
        stage = _stage(trace, events, event)
        if not found or found[-1][0] != stage:
            found.append((stage, event - 1))
    return tuple(found)


def _kept(totals: list[int]) -> list[int]:
    """Return the places that are shown: the first, the last, and of each stretch both extremes."""
    if len(totals) <= MOST_MOMENTS:
        return list(range(len(totals)))
    stretches = MOST_MOMENTS // 2 - 1
    ends = [round(i * len(totals) / stretches) for i in range(stretches + 1)]
    kept = {0, len(totals) - 1}
    for begin, end in pairwise(ends):
        places = range(begin, end)
        kept |= {max(places, key=totals.__getitem__), min(places, key=totals.__getitem__)}
    return sorted(kept)
