"""A predicted configuration: a table of where its memory goes, and whether it fits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypedDict

from rich.console import RenderableType
from rich.text import Text

from autotune.core.context import Device
from autotune.core.domains import Value
from autotune.core.knob import Numerics
from autotune.core.units import GIB, format_gb, format_gib, gib
from autotune.core.workload import WorkloadFacts
from autotune.estimate import Saving, Verdict
from autotune.knobs import BUILTIN
from autotune.memory.predict import COVERAGE, Estimate
from autotune.memory.rehearsal import Rehearsal
from autotune.report.document import SCHEMA
from autotune.report.spaces import grouped
from autotune.report.text import Column, Listing, make_table

_NAMES = {"logits": "logits and loss"}
_PROMISES = {
    Numerics.EXACT: "same result",
    Numerics.CLOSE: "other rounding",
    Numerics.LOSSY: "another model or optimum",
}
_WITHIN = {
    "forward": "the forward pass",
    "head": "logits and loss",
    "backward": "the backward pass",
    "optimizer": "the optimizer's update",
}
_PHASES = {
    "load": "loading",
    "first": "the first step",
    "steady": "a steady step",
    "evaluate": "the evaluation",
}


_BEYOND = (
    ("first step", "the first step"),
    ("loading", "loading"),
    ("evaluation", "the evaluation"),
)


class PeakPlace(TypedDict):
    """Where the peak is."""

    phase: str
    within: str
    operator: str


class IntervalDocument(TypedDict):
    """A prediction in GiB; `low` and `high` hold a measurement with probability `coverage`."""

    low: float
    middle: float
    high: float
    coverage: float


class SavingDocument(TypedDict):
    """What one technique would save beside the configuration."""

    knob: str
    value: Value
    numerics: str
    saved_gib: float
    predicted_gib: float


class BudgetDocument(TypedDict):
    """The budget, and what fits it; `largest_micro_batch` is null if no micro-batch does."""

    budget_gib: float
    limit_gib: float
    fits: bool
    certain: bool
    spare_gib: float
    largest_micro_batch: int | None
    largest_accumulation: int | None
    tried: int
    savings: Sequence[SavingDocument]


class EstimateDocument(TypedDict):
    """`estimate`; with `measured`, a probe measured all of it, and the interval is a point."""

    schema: int
    config: Mapping[str, Value]
    differs: str
    objective: str
    model: str
    data: str
    device: Mapping[str, object]
    global_batch: int
    micro_batch: int
    accumulation: int
    sequence_length: int
    parameters: int
    trained_parameters: int
    parts_gib: Mapping[str, float]
    measured: bool
    predicted_gib: IntervalDocument
    peak: PeakPlace
    budget: BudgetDocument | None
    seconds: float
    note: str


def estimate_document(
    estimate: Estimate, facts: WorkloadFacts, device: Device, verdict: Verdict | None
) -> EstimateDocument:
    """Return the document of an estimate, unrounded.

    Args:
        estimate: What is predicted.
        facts: The workload.
        device: What it is predicted for.
        verdict: What it is beside a budget, if there is one.
    """
    rehearsal, interval = estimate.rehearsal, estimate.interval
    return {
        "schema": SCHEMA,
        "config": estimate.config.to_json(),
        "differs": estimate.config.describe(BUILTIN),
        "objective": facts.workload.objective,
        "model": facts.model.name,
        "data": facts.data,
        "device": device.to_json(),
        "global_batch": estimate.data.global_batch,
        "micro_batch": estimate.micro_batch,
        "accumulation": estimate.accumulation,
        "sequence_length": estimate.data.sequence_length,
        "parameters": rehearsal.parameters,
        "trained_parameters": rehearsal.trained_parameters,
        "parts_gib": {name: size / GIB for name, size in estimate.parts.items()},
        "measured": estimate.measured,
        "predicted_gib": {
            "low": interval.low / GIB,
            "middle": interval.middle / GIB,
            "high": interval.high / GIB,
            "coverage": COVERAGE,
        },
        "peak": {
            "phase": rehearsal.phase,
            "within": rehearsal.within,
            "operator": rehearsal.operator,
        },
        "budget": None if verdict is None else _budget_document(verdict),
        "seconds": rehearsal.seconds,
        "note": " ".join(filter(None, (facts.note, rehearsal.note, rehearsal.derived))),
    }


def estimate_screen(
    estimate: Estimate, facts: WorkloadFacts, device: Device, verdict: Verdict | None
) -> list[RenderableType]:
    """Return an estimate as a screen: what, the table, where the peak is, the verdict.

    Args:
        estimate: What is predicted.
        facts: The workload.
        device: What it is predicted for.
        verdict: What it is beside a budget, if there is one.
    """
    rehearsal = estimate.rehearsal
    name = device.name or device.label
    title = f"{estimate.config.describe(BUILTIN)} on {facts.model.name}"
    columns = (Column(""), Column("GiB", "right"), Column("how it was counted", folds=True))
    rows = [
        (_NAMES.get(part, _outside_name(device) if part == "outside" else part), gib(size, 3), how)
        for part, size, how in _rows(estimate, facts, device)
    ]
    rows.append(_total(estimate))
    parts: list[RenderableType] = [
        Text(title, style="bold"),
        Text(f"{_data(facts)}, for {device.kind} ({name})"),
        Text(),
        make_table(columns, rows),
        Text(),
        Text(_place(rehearsal)),
    ]
    parts += [Text(note) for note in (facts.note, rehearsal.note, rehearsal.derived) if note]
    if verdict is not None:
        parts += [Text(), *_verdict(estimate, verdict)]
    return [*parts, Text(), _next(verdict, device)]


def _total(estimate: Estimate) -> tuple[str, str, str]:
    interval = estimate.interval
    if estimate.measured:
        return "measured peak", gib(interval.middle, 3), "what the budget is held against"
    how = (
        f"{COVERAGE:.0%} interval {gib(interval.low)} to {gib(interval.high)}, "
        "before any measurement"
    )
    return "predicted peak", gib(interval.middle, 3), how


def _place(rehearsal: Rehearsal) -> str:
    """Say where the peak is."""
    phase = _PHASES.get(rehearsal.phase, rehearsal.phase)
    if not rehearsal.within:
        return f"The peak of tensors is in {phase}."
    within = _WITHIN.get(rehearsal.within, rehearsal.within)
    return f"The peak is in {phase}, in {within}, after {rehearsal.operator}."


def _rows(
    estimate: Estimate, facts: WorkloadFacts, device: Device
) -> Iterator[tuple[str, int, str]]:
    for part, size in estimate.parts.items():
        if size > 0:
            yield part, size, _how(part, size, estimate, facts, device)


def _how(part: str, size: int, estimate: Estimate, facts: WorkloadFacts, device: Device) -> str:
    """Say how a part was counted, in numbers that a reader can multiply."""
    rehearsal, config = estimate.rehearsal, estimate.config
    trained = max(1, rehearsal.trained_parameters)
    share = trained / max(1, rehearsal.parameters)
    training = f"{share:.1%} of parameters train" if share < 1 else "all parameters train"
    outputs = f" × {grouped(facts.model.vocab)} outputs" if facts.model.vocab else ""
    chunks = config.get("loss_chunks", 1)
    pieces = f", in {chunks} pieces" if chunks != 1 else ""
    checkpointing = config.get("checkpointing", "none")
    recomputed = f", checkpointing {checkpointing}" if checkpointing != "none" else ""
    said = {
        "weights": f"{count(rehearsal.parameters)} parameters, "
        f"{size / max(1, rehearsal.parameters):.2f} bytes each",
        "gradients": f"{training}, {size / trained:.2f} bytes each",
        "optimizer": f"{config.get('optimizer', 'adamw')}, {size / trained:.2f} bytes for each of "
        f"{count(trained)} trained parameters",
        "activations": f"{_batches(estimate)}{recomputed}",
        "logits": f"{estimate.micro_batch} × {estimate.data.sequence_length} tokens{outputs}"
        f"{pieces}",
        "inputs": "the batch on the device",
        "other": "temporary results that are alive at the peak",
        **{name: f"the greatest peak is that of {phase}, by this much" for name, phase in _BEYOND},
        "workspace": "of cuBLAS, one for each thread that multiplies",
        "allocator": "what it reserves beyond the tensors, "
        + ("measured" if estimate.measured else "simulated"),
        "outside": estimate.outside_source,
    }
    return said.get(part, "")


def _batches(estimate: Estimate) -> str:
    data, pieces = estimate.data, estimate.accumulation
    batch = f"batch {data.global_batch} × {data.sequence_length} tokens"
    return batch if pieces == 1 else f"{batch} in {pieces} micro-batches of {estimate.micro_batch}"


def _data(facts: WorkloadFacts) -> str:
    workload = facts.workload
    return (
        f"{task_name(workload.objective)} on {facts.data.partition(',')[0]}, "
        f"batch {workload.global_batch} × {workload.sequence_length} tokens"
    )


def task_name(objective: str) -> str:
    """Return how screens call an objective: the part of a path that names the task."""
    name = objective.rpartition(":")[2].removesuffix("Shapes")
    spaced = "".join(f" {c.lower()}" if c.isupper() else c for c in name).strip()
    return spaced.replace("_", " ").replace("l m", "LM")


def _outside_name(device: Device) -> str:
    return "context" if device.kind == "cuda" else "process"


def _verdict(estimate: Estimate, verdict: Verdict) -> Iterator[RenderableType]:
    what = f"{verdict.budget.describe()}"
    spare = format_gib(abs(verdict.spare_bytes))
    end = "" if verdict.certain else ", which the interval leaves open"
    if verdict.fits:
        yield Text(f"Fits {what}: {spare} to spare{end}.", style="green")
    else:
        yield Text(f"Does not fit {what}: {spare} too much{end}.", style="red")
    if estimate.measured:
        return
    largest = verdict.largest
    if largest is None:
        yield Text("No micro-batch fits, not even the smallest that accumulation allows.")
    else:
        sequences = f"{largest.micro_batch} sequence{'s' * (largest.micro_batch != 1)}"
        yield Text(
            f"Largest micro-batch that fits: {sequences} (accumulation={largest.accumulation}, "
            f"{format_gib(largest.predicted_bytes)})."
        )
    if not verdict.savings:
        yield Text("No technique by itself would save memory here.")
        return
    yield Text()
    yield Text(f"What would save most, one at a time (of {verdict.tried} that were tried)")
    yield Text()
    yield make_table(
        (Column("set"), Column("saves GiB", "right"), Column("leaves", "right"), Column("keeps")),
        [_saving_row(saving) for saving in verdict.savings],
    )


def _saving_row(saving: Saving) -> tuple[str, str, str, str]:
    return (
        f"{saving.knob.name}={saving.value}",
        gib(saving.saved_bytes),
        gib(saving.estimate.predicted_bytes),
        _PROMISES[saving.knob.numerics],
    )


def _next(verdict: Verdict | None, device: Device) -> Listing:
    lines = []
    if verdict is None:
        lines.append(("--budget 16GB", "whether it fits, and what would save most"))
    elif verdict.savings and not verdict.fits:
        best = verdict.savings[0]
        lines.append((f"--set {best.knob.name}={best.value}", "the same estimate with it"))
    if device.kind == "cpu":
        lines.append(("--device A100-80GB", "the same for a device that is not here"))
    size = "16GB" if verdict is None else format_gb(verdict.budget.total_bytes).replace(" ", "")
    lines.append((f"autotune run --budget {size}", "search for what trains best within it"))
    return Listing("Next", lines)


def _budget_document(verdict: Verdict) -> BudgetDocument:
    largest = verdict.largest
    return {
        "budget_gib": verdict.budget.total_bytes / GIB,
        "limit_gib": verdict.budget.limit_bytes / GIB,
        "fits": verdict.fits,
        "certain": verdict.certain,
        "spare_gib": verdict.spare_bytes / GIB,
        "largest_micro_batch": largest.micro_batch if largest else None,
        "largest_accumulation": largest.accumulation if largest else None,
        "tried": verdict.tried,
        "savings": [
            {
                "knob": saving.knob.name,
                "value": saving.value,
                "numerics": saving.knob.numerics.name.lower(),
                "saved_gib": saving.saved_bytes / GIB,
                "predicted_gib": saving.estimate.predicted_bytes / GIB,
            }
            for saving in verdict.savings
        ],
    }


def count(number: int) -> str:
    """Show a number of parameters: `1.24 B`, `124 M`, `4.1 k`."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)
