"""The timelines as figures: the parts of a trial's memory stacked over the events of one step."""

from __future__ import annotations

import plotly.graph_objects as go

from autotune.core.outcome import ANATOMY_PARTS
from autotune.core.units import GIB, format_gib
from autotune.memory.timeline import Timeline
from autotune.report.cards.timelines import Course, Timelines
from autotune.report.drawing import GREY, PARTS, Figure, dressed, literal

_HEIGHT = 346
_LINE = 16
"""Height of a line of names, of which there are two where a stage is short; in pixels."""

_NAME_SHARE = 0.18
"""Share of a figure's width that the name of a stage takes."""

_MOST_LINES = 40
"""Boundaries that are drawn, at most: beyond that, accumulation would cover its own figure."""


def draw_timelines(card: Timelines) -> list[Figure]:
    """Draw each trial's memory over one step; every figure has a scale of its own."""
    return [_draw(course, card.key) for course in card.courses]


def _draw(course: Course, key: str) -> Figure:
    timeline, drawing = course.timeline, go.Figure()
    for part in sorted(timeline.parts, key=_order):
        drawing.add_scatter(
            name=literal(part),
            x=list(timeline.moments),
            y=[_rounded(amount) for amount in timeline.parts[part]],
            mode="lines",
            stackgroup="memory",
            line={"shape": "hv", "width": 0.5, "color": PARTS.get(part, GREY)},
            fillcolor=PARTS.get(part, GREY),
            hovertemplate=f"{literal(part)}: %{{y:.3f}} GiB<extra></extra>",
        )
    _add_stages(drawing, timeline)
    drawing.add_annotation(
        text=f"peak {format_gib(timeline.peak_bytes)}",
        x=timeline.moments[timeline.peak_moment],
        y=_rounded(timeline.peak_bytes),
        ax=0,
        ay=-22,
        arrowhead=2,
        arrowwidth=1,
    )
    drawing.update_layout(hovermode="x unified")
    first, last = timeline.moments[0], timeline.moments[-1]
    drawing.update_xaxes(title="allocations and frees, in order", range=[first, last])
    top = 1.18 * timeline.peak_bytes / GIB
    drawing.update_yaxes(title="GiB", range=[0, top], showgrid=True)
    return Figure(
        key=f"timeline-{course.number}",
        card=key,
        alt=_words(course),
        caption=course.title,
        drawing=_legend_below(dressed(drawing, _HEIGHT)),
    )


def _legend_below(drawing: go.Figure) -> go.Figure:
    """Leave the room above the figure to the names of the stages."""
    drawing.update_layout(
        margin={"t": 24 + _LINE}, legend={"traceorder": "normal", "y": -0.24, "yanchor": "top"}
    )
    return drawing


def _order(part: str) -> int:
    """Return where a part is stacked: what stays lies below what comes and goes."""
    return ANATOMY_PARTS.index(part) if part in ANATOMY_PARTS else len(ANATOMY_PARTS)


def _rounded(amount: int) -> float:
    return float(f"{amount / GIB:.6g}")


def _add_stages(drawing: go.Figure, timeline: Timeline) -> None:
    """Draw where each stage begins, and name each kind once."""
    if len(timeline.stages) > _MOST_LINES:
        return
    named: set[str] = set()
    room = _NAME_SHARE * (timeline.moments[-1] - timeline.moments[0])
    free = 0.0  # where the name before ends
    for stage, begin in timeline.stages:
        drawing.add_shape(
            type="line",
            x0=begin,
            x1=begin,
            y0=0,
            y1=1,
            yref="paper",
            line={"dash": "dot", "width": 1, "color": GREY},
        )
        if stage in named:
            continue
        named.add(stage)
        above = begin < free
        free = begin + room
        drawing.add_annotation(
            text=literal(stage),
            x=begin,
            y=1,
            yref="paper",
            xanchor="left",
            yanchor="bottom",
            yshift=_LINE if above else 0,
            showarrow=False,
        )


def _words(course: Course) -> str:
    timeline = course.timeline
    most = "; ".join(f"{stage} {format_gib(peak)}" for stage, peak in timeline.peaks.items())
    held = "; ".join(
        f"{part} {format_gib(timeline.parts[part][timeline.peak_moment])}"
        for part in sorted(timeline.parts, key=_order)
    )
    measured = format_gib(course.measured_bytes) if course.measured_bytes else "not known"
    return (
        f"Rehearsed memory of trial {course.number} over one step. Most in each stage: {most}. "
        f"At the peak: {held}. Measured peak: {measured}. The table below has all amounts."
    )
