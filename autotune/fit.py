"""Whether anything fits the budget, and if not, what would.

The smallest configuration of the space is the second trial of every run. If it is over the budget,
and nothing else was in it, the search ends with numbers: the smallest is run once more, for a few
steps and without the limit, so that the message can say what it needs and which budget would work.
"""

from __future__ import annotations

from dataclasses import replace

from autotune.core.errors import NothingFits
from autotune.core.outcome import Completed, Outcome, OutOfMemory, Refused, outcome_from_json
from autotune.core.record import Origin, TrialRecord
from autotune.core.units import MIB, format_gb, gib
from autotune.driver import Search
from autotune.plan import Plan


def check_that_something_fits(search: Search) -> None:
    """Look at the opening trials once they have ended.

    Raises:
        NothingFits: If the smallest configuration is over the budget and no other is within it.
    """
    if (smallest := too_large(search)) is not None:
        raise nothing_fits(search.plan, smallest, probe(search, smallest))


def too_large(search: Search) -> TrialRecord | None:
    """Return the smallest configuration's trial if it is over the budget, as is everything else.

    None is returned, too, while that is not known.
    """
    ended = search.ended
    smallest = next((r for r in ended if r.origin is Origin.SMALLEST), None)
    if smallest is None or search.running or len(ended) > smallest.number + 1:
        return None
    over = isinstance(smallest.outcome, OutOfMemory | Completed | Refused)
    return smallest if over and not any(record.feasible for record in ended) else None


def probe(search: Search, record: TrialRecord) -> Completed | None:
    """Run a configuration for a few steps with all that the device has.

    Returns:
        What it measured, or None if it does not even fit the device.
    """
    device = search.plan.devices[0]
    spec = replace(search.trial_spec(record, device), probe=True, limit_bytes=device.total_bytes)
    search.runner.submit(spec)
    while (event := search.runner.next()) is not None:
        if event.kind == "outcome":
            outcome = outcome_from_json(event.data)
            return outcome if isinstance(outcome, Completed) else None
    return None


def nothing_fits(plan: Plan, smallest: TrialRecord, measured: Completed | None) -> NothingFits:
    """Say what the smallest configuration needs, itemised, and which budget would work."""
    outcome: Outcome | None = measured or smallest.outcome
    needed = outcome.measurement.footprint_bytes if outcome else 0
    if isinstance(outcome, OutOfMemory | Refused):
        needed = max(needed, outcome.needed_bytes)
    budget = suggested_budget(int(needed / (1.0 - plan.budget.headroom)))
    parts = outcome.measurement.anatomy if outcome else {}
    items = ", ".join(f"{gib(size)} {part}" for part, size in parts.items() if size >= MIB)
    return NothingFits(
        f"nothing in space '{plan.space.name}' fits {format_gb(plan.budget.total_bytes)}",
        context=[
            f"the smallest configuration needs {'' if measured else 'at least '}{gib(needed)} GiB"
            + (f": {items}" if items else ""),
            f"it is {smallest.config.describe(plan.space.knobs)}",
        ],
        help=f"the smallest budget that works is {budget}: the same command with --budget {budget}",
    )


def suggested_budget(enough: int) -> str:
    """Return the next amount above `enough` bytes that one would type: `350MB`, `6.6GB`."""
    step = 10**8 if enough >= 10**9 else 10**7
    return format_gb(-(-enough // step) * step).replace(" ", "")
