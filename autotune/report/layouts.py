"""The layouts that fit some devices: a table, and where the memory of each rank goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

from rich.console import RenderableType
from rich.text import Text

from autotune.core.budget import Budget
from autotune.core.context import Device
from autotune.core.domains import Value
from autotune.core.units import GIB, gib
from autotune.core.workload import WorkloadFacts
from autotune.knobs import BUILTIN
from autotune.parallel.planning import Layouts, Planned
from autotune.report.document import SCHEMA
from autotune.report.estimate import task_name
from autotune.report.text import Column, Listing, make_table


class PlannedDocument(TypedDict):
    """One layout; `ranks_gib` has a peak of tensors for each rank that is unlike the others."""

    config: Mapping[str, Value]
    differs: str
    seconds: Mapping[str, float]
    micro_batch: int
    predicted_gib: float
    parts_gib: Mapping[str, float]
    ranks_gib: Mapping[int, float]


class LayoutsDocument(TypedDict):
    """`plan`: the layouts that fit, fastest first; seconds are there to put them in order."""

    schema: int
    model: str
    device: Mapping[str, object]
    devices: int
    limit_gib: float
    global_batch: int
    sequence_length: int
    layouts: Sequence[PlannedDocument]
    leanest: PlannedDocument | None
    legal: int
    rehearsed: int
    refused: int
    passed: int
    failed: Sequence[str]
    seconds: float
    rates: str


def layouts_document(
    found: Layouts, facts: WorkloadFacts, device: Device, devices: int, budget: Budget
) -> LayoutsDocument:
    """Return the document of planned layouts, unrounded.

    Args:
        found: What was planned.
        facts: The workload.
        device: One of the devices.
        devices: How many.
        budget: For each of them.
    """
    return {
        "schema": SCHEMA,
        "model": facts.model.name,
        "device": device.to_json(),
        "devices": devices,
        "limit_gib": budget.limit_bytes / GIB,
        "global_batch": facts.workload.global_batch,
        "sequence_length": facts.workload.sequence_length,
        "layouts": [_planned(planned) for planned in found.fitting],
        "leanest": None if found.leanest is None else _planned(found.leanest),
        "legal": found.legal,
        "rehearsed": found.rehearsed,
        "refused": found.refused,
        "passed": found.passed,
        "failed": list(found.failed),
        "seconds": found.seconds,
        "rates": found.rates,
    }


def layouts_screen(
    found: Layouts, facts: WorkloadFacts, device: Device, devices: int, budget: Budget
) -> list[RenderableType]:
    """Return planned layouts as a screen.

    Args:
        found: What was planned.
        facts: The workload.
        device: One of the devices.
        devices: How many.
        budget: For each of them.
    """
    workload, name = facts.workload, device.name or device.label
    parts: list[RenderableType] = [
        Text(f"{facts.model.name} on {devices} x {name}", style="bold"),
        Text(
            f"{task_name(workload.objective)}, batch {workload.global_batch} x "
            f"{workload.sequence_length} tokens, {budget.describe()} each"
        ),
        Text(),
    ]
    if found.fitting:
        parts += [_table(found.fitting), Text(), *_anatomy(found.fitting[0])]
    elif found.leanest is not None:
        needs = gib(found.leanest.estimate.predicted_bytes)
        parts += [
            Text("No layout that was tried fits.", style="red"),
            Text(f"The leanest: {_layout(found.leanest)}, {needs} GiB on a device"),
        ]
    parts += [Text(), Text(_looked_at(found)), *map(Text, found.failed[:3]), Text(), _next(found)]
    return parts


def _table(fitting: Sequence[Planned]) -> RenderableType:
    fastest = fitting[0].pace.seconds
    columns = (
        Column("#", "right"),
        Column("layout", folds=True),
        Column("GiB", "right"),
        Column("micro-batch", "right"),
        Column("time", "right"),
        Column("exchange", "right"),
        Column("waiting", "right"),
    )
    rows = [
        (
            str(place),
            _layout(planned),
            gib(planned.estimate.predicted_bytes),
            str(planned.estimate.micro_batch),
            f"{planned.pace.seconds / fastest:.2f}x",
            f"{planned.pace.exchange / planned.pace.seconds:.0%}",
            f"{planned.pace.bubble / planned.pace.seconds:.0%}",
        )
        for place, planned in enumerate(fitting, 1)
    ]
    return make_table(columns, rows)


def _anatomy(planned: Planned) -> list[RenderableType]:
    rehearsal = planned.estimate.rehearsal
    ranks = ", ".join(f"rank {rank} {gib(size)}" for rank, size in rehearsal.by_rank.items())
    rows = [(part, gib(size, 3)) for part, size in planned.estimate.parts.items() if size]
    return [
        Text("Where the memory of layout 1 goes, on the rank that needs most"),
        Text(),
        make_table((Column(""), Column("GiB", "right")), rows),
        Text(),
        Text(f"Peaks of tensors, GiB: {ranks or 'one rank'}; other ranks are like one of these."),
    ]


def _layout(planned: Planned) -> str:
    return planned.config.describe(BUILTIN)


def _looked_at(found: Layouts) -> str:
    return (
        f"{found.legal} legal layouts; {found.rehearsed} rehearsed in {found.seconds:.0f} s, "
        f"{found.refused} of them do not fit, {found.passed} passed over: their "
        "weights, states and kept activations alone are too much, or leaner layouts are. "
        f"Rates of devices and links: {found.rates}."
    )


def _planned(planned: Planned) -> PlannedDocument:
    pace, estimate = planned.pace, planned.estimate
    return {
        "config": planned.config.to_json(),
        "differs": _layout(planned),
        "seconds": {
            "step": pace.seconds,
            "compute": pace.compute,
            "exchange": pace.exchange,
            "bubble": pace.bubble,
            "update": pace.update,
        },
        "micro_batch": estimate.micro_batch,
        "predicted_gib": estimate.predicted_bytes / GIB,
        "parts_gib": {part: size / GIB for part, size in estimate.parts.items()},
        "ranks_gib": {rank: size / GIB for rank, size in estimate.rehearsal.by_rank.items()},
    }


def _next(found: Layouts) -> Listing:
    lines = [("--to torchtitan", "the fastest as a configuration; --pick 2 for the second")]
    if not found.fitting:
        lines = [
            ("--set precision=bf16", "half the bytes of weights"),
            ("--set optimizer.bits=8", "a quarter of the bytes of states"),
        ]
    return Listing("Next", lines)
