"""What would join the front but was not run: trained accuracies at leaner settings, as predicted.

A search that trains with fast settings of the exact knobs knows the accuracy of lean ones, too, and
about what those need. The best of them are run before the search ends; what it had no time for is
shown, apart from what was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.text import Text

from autotune.core.knob import Knob
from autotune.core.space import parse_space
from autotune.core.units import GIB
from autotune.knobs import BUILTIN
from autotune.report.text import Column, error_text, make_table, score_text
from autotune.search.proposers import DEFAULT_SAMPLER
from autotune.storage.run import Run

if TYPE_CHECKING:
    from autotune.search.claims import Claim

MOST = 5
WORTH = 0.9
"""A prediction is shown if it needs at most this share of what its accuracy is had with so far."""

HEADING = "Predicted, not run: the same accuracy with less memory"


def predicted(run: Run) -> tuple[Claim, ...]:
    """Return the predictions that are worth showing, by ascending peak.

    Only the frontier search makes any. None are made where trials show that settings that should
    leave accuracy alone do not.
    """
    spec = run.spec
    if spec.sampler != DEFAULT_SAMPLER or not run.front():
        return ()
    from autotune.plan import context_of  # with numpy and scipy, which other screens do without
    from autotune.search.claims import claims
    from autotune.storage.rows import read_device

    space = parse_space(spec.space_source, spec.space, BUILTIN).narrowed(spec.overrides)
    found = claims(
        run.records,
        space,
        context_of(spec.facts, read_device(spec.device)),
        run.metric,
        limit_bytes=run.budget.limit_bytes,
    )
    points = [point for record in run.front() if (point := record.point(run.metric))]

    def share(claim: Claim) -> float:
        return claim.peak_bytes / min(p for loss, p in points if loss <= claim.loss)

    worth = sorted((c for c in found if share(c) <= WORTH), key=share)[:MOST]
    return tuple(sorted(worth, key=lambda claim: claim.peak_bytes))


def predicted_rows(run: Run, found: Sequence[Claim], knobs: Sequence[Knob]) -> list[list[str]]:
    """Return a row for each prediction: as trial, score, peak GiB, differs from baseline."""
    return [
        [
            str(claim.trained),
            score_text(run.trial(claim.trained).score(run.metric), run.metric),
            f"{claim.peak_bytes / GIB:.3f} ±{error_text(claim.spread * claim.peak_bytes / GIB, 3)}",
            claim.config.describe(knobs),
        ]
        for claim in found
    ]


def predicted_parts(run: Run, knobs: Sequence[Knob]) -> list[RenderableType]:
    """Return what screens show of predictions: nothing if there are none."""
    found = predicted(run)
    if not found:
        return []
    columns = (
        Column("as trial", "right"),
        Column(run.metric.name, "right"),
        Column("peak GiB", "right"),
        Column("differs from baseline", folds=True),
    )
    table = make_table(columns, predicted_rows(run, found, knobs))
    return [Text(), Text(HEADING, style="bold"), Text(), table]
