"""A run as notebooks show it: its front as a small table of HTML, everything in it escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Protocol

from autotune.core.pareto import Picks
from autotune.core.record import TrialRecord
from autotune.core.units import format_duration, gib
from autotune.core.workload import Metric
from autotune.knobs import BUILTIN

_RIGHT = "text-align:right;font-variant-numeric:tabular-nums"
_LEFT = "text-align:left"
_MOST = 20


class Shown(Protocol):
    """What is shown of a run."""

    @property
    def name(self) -> str:
        """What it is called."""

    @property
    def status(self) -> str:
        """How it stands."""

    @property
    def metric(self) -> Metric:
        """What it searches for."""

    @property
    def elapsed(self) -> float:
        """Seconds that it took."""

    def counts(self) -> dict[str, int]:
        """Return how many trials ended in which way."""

    def front(self) -> list[TrialRecord]:
        """Return the trials that nothing else beats."""

    def picks(self) -> Picks:
        """Return the trials worth looking at."""


def run_html(run: Shown) -> str:
    """Return a run's head, its front, and what to type for the rest."""
    ends = ", ".join(f"{count} {status}" for status, count in sorted(run.counts().items()))
    head = f"{run.status}: {ends or 'no trials'}, {format_duration(run.elapsed)}"
    front = run.front()[::-1]
    parts = [f"<p><b>{escape(run.name)}</b> {escape(head)}</p>"]
    if front:
        parts.append(_table(run, front[:_MOST]))
    else:
        parts.append("<p>No trial completed within the budget.</p>")
    more = f"{len(front) - _MOST} more: " if len(front) > _MOST else ""
    parts.append(f"<p>{more}<code>autotune report {escape(run.name)}</code></p>")
    return f'<div class="autotune-run">{"".join(parts)}</div>'


def _table(run: Shown, records: Sequence[TrialRecord]) -> str:
    names = ("#", run.metric.name, "peak GiB", "tok/s", "differs from the baseline", "")
    heads = "".join(
        f'<th style="{_LEFT if index >= 4 else _RIGHT}">{escape(name)}</th>'
        for index, name in enumerate(names)
    )
    rows = "".join(_row(run, record) for record in records)
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"


def _row(run: Shown, record: TrialRecord) -> str:
    metric, score, picks = run.metric, record.score(run.metric), run.picks()
    assert score is not None
    assert record.outcome is not None
    measured = record.outcome.measurement
    error = "" if score.stderr is None else f" ± {score.stderr:.{metric.digits}f}"
    knee = picks.knee is not None and picks.knee.number == record.number
    cells = (
        (str(record.number), _RIGHT),
        (f"{score.value:.{metric.digits}f}{error}", _RIGHT),
        (gib(measured.peak_bytes), _RIGHT),
        (f"{measured.throughput:.0f}", _RIGHT),
        (record.config.describe(BUILTIN), _LEFT),
        ("recommended" if knee else "", _LEFT),
    )
    inside = "".join(f'<td style="{style}">{escape(text)}</td>' for text, style in cells)
    return f"<tr>{inside}</tr>"
