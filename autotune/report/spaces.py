"""Search spaces and knobs as screens and documents: values, what they may do, what is blocked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NotRequired, TypedDict

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from autotune.core.budget import Budget
from autotune.core.context import Context, Device
from autotune.core.domains import Choice, Domain, Value
from autotune.core.knob import Knob
from autotune.core.space import Space
from autotune.core.units import GIB, format_gib
from autotune.core.workload import WorkloadFacts
from autotune.report.document import SCHEMA
from autotune.report.text import Column, make_table
from autotune.survey import COVERAGE, Survey


class KnobDocument(TypedDict):
    """A knob: `values` of a choice, or `low` and `high` of a range."""

    name: str
    help: str
    values: Sequence[Value] | None
    low: float | None
    high: float | None
    neutral: Value
    leanest: Value
    numerics: str
    references: Sequence[str]


class SpaceDocument(TypedDict):
    """A space in its surroundings; `size` and `legal` are null where they cannot be counted."""

    name: str
    summary: str
    knobs: Sequence[KnobDocument]
    rules: Sequence[str]
    training: Mapping[str, int]
    size: int | None
    legal: int | None
    blocked: Mapping[str, Mapping[str, str]]


class NeedsDocument(TypedDict):
    """Predicted peaks of the configurations that were rehearsed."""

    least: float
    median: float
    greatest: float


class FitsDocument(TypedDict):
    """How many configurations fit; `share` is of those rehearsed, `low` and `high` bound it of all.

    `complete` says that no legal configuration was left out.
    """

    budget_gib: float
    limit_gib: float
    objective: str
    model: str
    device: str
    global_batch: int
    sequence_length: int
    rehearsed: int
    unknown: int
    complete: bool
    fit: int
    share: float
    low: float
    high: float
    coverage: float
    needs_gib: NeedsDocument | None
    seconds: float


class SpaceShowDocument(TypedDict):
    """`spaces show`, `spaces check`; `fits` is there if a budget was given."""

    schema: int
    space: SpaceDocument
    fits: NotRequired[FitsDocument]


def knob_document(knob: Knob, domain: Domain | None = None) -> KnobDocument:
    """Return the document of a knob, with a narrowed domain if one is given."""
    domain = domain or knob.domain
    choice = isinstance(domain, Choice)
    return {
        "name": knob.name,
        "help": knob.help,
        "values": list(domain.values) if isinstance(domain, Choice) else None,
        "low": None if choice else float(getattr(domain, "low", 0.0)),
        "high": None if choice else float(getattr(domain, "high", 0.0)),
        "neutral": knob.neutral,
        "leanest": knob.leanest,
        "numerics": knob.numerics.name.lower(),
        "references": list(knob.references),
    }


def space_document(space: Space, context: Context) -> SpaceDocument:
    """Return the document of a space on a device, for a model."""
    return {
        "name": space.name,
        "summary": space.summary,
        "knobs": [knob_document(space.knob(name), d) for name, d in space.domains.items()],
        "rules": [rule.name for rule in space.rules],
        "training": dict(space.training),
        "size": space.size,
        "legal": space.count(context),
        "blocked": {
            name: {str(value): sentence for value, sentence in values.items()}
            for name, values in space.blocked_values(context).items()
        },
    }


def space_show_document(space: Space, context: Context) -> SpaceShowDocument:
    """Return the document of `spaces show`."""
    return {"schema": SCHEMA, "space": space_document(space, context)}


def fits_document(
    found: Survey, budget: Budget, facts: WorkloadFacts, device: Device
) -> FitsDocument:
    """Return the document of how many configurations fit, unrounded.

    Args:
        found: What was found out.
        budget: What they have to fit.
        facts: What is trained.
        device: Where.
    """
    low, high = found.interval
    least, median, greatest = found.spread if found.needs else (0, 0, 0)
    needs: NeedsDocument = {
        "least": least / GIB, "median": median / GIB, "greatest": greatest / GIB
    }  # fmt: skip
    return {
        "budget_gib": budget.total_bytes / GIB,
        "limit_gib": budget.limit_bytes / GIB,
        "objective": facts.workload.objective,
        "model": facts.model.name,
        "device": device.name or device.label,
        "global_batch": facts.workload.global_batch,
        "sequence_length": facts.workload.sequence_length,
        "rehearsed": len(found.needs),
        "unknown": found.unknown,
        "complete": found.complete,
        "fit": found.fitting,
        "share": found.share,
        "low": low,
        "high": high,
        "coverage": COVERAGE,
        "needs_gib": needs if found.needs else None,
        "seconds": found.seconds,
    }


def fits_screen(
    found: Survey, budget: Budget, facts: WorkloadFacts, device: Device
) -> RenderableType:
    """Return how many configurations fit, in a few sentences; see `fits_document`."""
    workload = facts.workload
    title = Text(f"Within {budget.describe()}", style="bold")
    what = Text(
        f"{facts.model.name}, batch {workload.global_batch} × {workload.sequence_length} tokens, "
        f"on {device.name or device.label}"
    )
    lines = [title, what, Text(_fitting(found))]
    if found.needs:
        least, median, greatest = (format_gib(amount) for amount in found.spread)
        lines.append(Text(f"They need {least} to {greatest}, half of them at most {median}."))
    if found.unknown:
        lines.append(Text(f"Left out because it cannot be rehearsed: {found.unknown}."))
    return Group(Text(), *lines)


def _fitting(found: Survey) -> str:
    """Say how many fit, and how sure that is."""
    share = f"{found.fitting} fit{'s' * (found.fitting == 1)}: {found.share:.0%}"
    if found.complete:
        known = " that can be rehearsed" if found.unknown else ""
        return f"Of all {grouped(len(found.needs))} legal configurations{known}, {share}."
    low, high = found.interval
    return (
        f"Of {grouped(len(found.needs))} legal configurations drawn at random, {share} "
        f"({low:.0%} to {high:.0%} of all, at {COVERAGE:.0%} confidence)."
    )


def space_screen(space: Space, context: Context) -> RenderableType:
    """Return a space: its knobs, how many configurations, rules, and what is blocked here."""
    parts: list[RenderableType] = [Text(f"Space {space.name}", style="bold")]
    if space.summary:
        parts.append(Text(space.summary))
    rows = [
        (name, domain.describe(), str(space.knob(name).neutral), numerics(space.knob(name)))
        for name, domain in space.domains.items()
    ]
    columns = (
        Column("knob"),
        Column("values", folds=True),
        Column("baseline"),
        Column("numerics"),
    )
    parts += [Text(), make_table(columns, rows), Text(), Text(size_sentence(space, context))]
    if space.training:
        training = ", ".join(f"{name} {value}" for name, value in space.training.items())
        parts.append(Text(f"It trains with {training}."))
    if space.rules:
        parts += [Text(), Text("Rules", style="bold")]
        parts += [Padding(Text(rule.reason), (0, 0, 0, 3), expand=False) for rule in space.rules]
    parts += blocked_lines(space, context)
    return Group(*parts)


def blocked_lines(space: Space, context: Context) -> list[RenderableType]:
    """Return the values that cannot be used here by themselves, each with its sentence."""
    blocked = space.blocked_values(context)
    if not blocked:
        return []
    rows = [
        (f"{name}={value}", sentence)
        for name, values in blocked.items()
        for value, sentence in values.items()
    ]
    title = Text("Cannot be used here by themselves", style="bold")
    table = make_table((Column("value"), Column("because", folds=True)), rows)
    return [Text(), title, Text(), table]


def size_sentence(space: Space, context: Context) -> str:
    """Say how many configurations a space has, and how many of them are legal."""
    knobs = f"{len(space.domains)} knob{'s' * (len(space.domains) != 1)}"
    if space.size is None:
        return f"{knobs}, one of them continuous: without end."
    legal = space.count(context)
    size = grouped(space.size)
    if legal is None:
        return f"{knobs}, {size} combinations."
    return (
        f"{knobs}, {size} combinations, {grouped(legal)} of them legal on {context.device.label}."
    )


def knobs_table(knobs: Sequence[Knob]) -> RenderableType:
    """Return all knobs, one line each."""
    columns = (
        Column("knob"),
        Column("values", folds=True),
        Column("numerics"),
        Column("what it does", folds=True),
    )
    rows = [(k.name, k.domain.describe(), k.numerics.name.lower(), k.help) for k in knobs]
    return make_table(columns, rows)


def knob_screen(knob: Knob, context: Context) -> RenderableType:
    """Return one knob with everything it says of itself, and what is blocked here."""
    rows = [
        ("values", knob.domain.describe()),
        ("baseline", str(knob.neutral)),
        ("least memory", str(knob.leanest)),
        ("numerics", f"{knob.numerics.name.lower()}: {knob.numerics.value}"),
        ("stages", ", ".join(bound.stage.name for bound in knob.transforms) or "–"),
        *(("reference" if i == 0 else "", text) for i, text in enumerate(knob.references)),
    ]
    space = Space(name="all", knobs=(knob,), domains={knob.name: knob.domain}, rules=())
    table = make_table((Column(knob.name), Column("", folds=True)), rows)
    return Group(Text(knob.help), Text(), table, *blocked_lines(space, context))


def numerics(knob: Knob) -> str:
    """Return what a knob may do to the numbers, in one word."""
    return knob.numerics.name.lower()


def grouped(number: int) -> str:
    """Show a whole number in groups of three digits: `41 472`."""
    return f"{number:,}".replace(",", " ")
