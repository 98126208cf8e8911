"""Figures of the report, drawn by plotly from the data of the cards.

Each figure comes with the words that stand for it where it cannot be seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from autotune.core.units import GIB
from autotune.report.cards.anatomy import Anatomy
from autotune.report.cards.card import Card, Declined
from autotune.report.cards.knobs import Knobs, step_name
from autotune.report.cards.timelines import Timelines
from autotune.report.cards.tradeoff import Mark, State, TradeOff
from autotune.report.cards.trust import Trust
from autotune.report.drawing import (
    BLUE,
    GREEN,
    GREY,
    PARTS,
    RED,
    Figure,
    dressed,
    literal,
)
from autotune.report.timeline_figures import draw_timelines


def make_figures(cards: Sequence[Card | Declined]) -> list[Figure]:
    """Return the figures of cards, in their order."""
    found: list[Figure] = []
    for card in cards:
        for kind, draw in _DRAWN:
            if isinstance(card, kind):
                found += [figure for figure in (draw(card),) if figure is not None]
        if isinstance(card, Timelines):
            found += draw_timelines(card)
    return found


def draw_tradeoff(card: TradeOff) -> Figure:
    """Draw every trial by memory and score, the front as steps."""
    drawing = go.Figure()
    _add_dots(drawing, card, "dominated", "off the front", GREY)
    _add_dots(drawing, card, "over", "over the budget", RED)
    _add_front(drawing, card)
    _add_crosses(drawing, card)
    if card.shows_budget:
        drawing.add_vline(x=card.limit_gib, line={"dash": "dash", "color": RED, "width": 1.5})
        drawing.add_annotation(
            text=f"budget {card.limit_gib:.2f} GiB",
            x=_place(card, card.limit_gib),
            y=1,
            yref="paper",
            yanchor="bottom",
            xanchor="right",
            showarrow=False,
        )
    scale = "peak memory (GiB, logarithmic)" if card.logarithmic else "peak memory (GiB)"
    drawing.update_xaxes(title=scale, **_memory_axis(card))
    better = "higher" if card.maximize else "lower"
    drawing.update_yaxes(
        title=f"{literal(card.metric)} ({better} is better)", range=score_range(card)
    )
    front = [mark for mark in card.marks if mark.state == "front"]
    points = "; ".join(f"trial {m.number}: {m.score:.4g} at {m.gib:.3g} GiB" for m in front)
    return Figure(
        key="tradeoff",
        card=card.key,
        alt=f"{card.metric} against peak memory. On the front: {points}. The table below has all.",
        caption="",
        drawing=dressed(drawing, 460),
    )


def draw_anatomy(card: Anatomy) -> Figure:
    """Draw the memory of the front as stacked bars."""
    drawing = go.Figure()
    names = [f"#{bar.number}" for bar in card.bars]
    for part in card.parts:
        drawing.add_bar(
            name=literal(part),
            y=names,
            x=[bar.parts.get(part, 0.0) for bar in card.bars],
            orientation="h",
            marker={"color": PARTS.get(part, GREY)},
            hovertemplate=f"%{{y}} {literal(part)}: %{{x:.3f}} GiB<extra></extra>",
        )
    totals = [sum(bar.parts.values()) for bar in card.bars]
    if card.limit_gib <= 2 * max(totals):
        drawing.add_vline(x=card.limit_gib, line={"dash": "dash", "color": RED, "width": 1.5})
    drawing.update_layout(barmode="stack", bargap=0.3, legend={"traceorder": "normal"})
    drawing.update_xaxes(title="GiB at the peak of a steady step", rangemode="tozero")
    drawing.update_yaxes(autorange="reversed", type="category", showgrid=False)
    words = "; ".join(
        f"trial {bar.number}: {max(bar.parts, key=lambda part: bar.parts[part])} most"
        for bar in card.bars
    )
    return Figure(
        key="anatomy",
        card=card.key,
        alt=f"Memory of each trial of the front by part. {words}. The table below has all amounts.",
        caption="",
        drawing=dressed(drawing, 150 + 34 * len(names)),
    )


def draw_knobs(card: Knobs) -> Figure:
    """Draw what each step of a knob did to memory and score, with intervals."""
    drawing = make_subplots(rows=1, cols=2, shared_yaxes=True, horizontal_spacing=0.06)
    names = [literal(step_name(effect)) for effect in card.effects]
    drawing.add_scatter(
        row=1,
        col=1,
        name="peak memory",
        x=[effect.peak_bytes / GIB for effect in card.effects],
        y=names,
        mode="markers",
        marker={"color": BLUE, "size": 9},
        error_x=_bars([_in_gib(effect.peak_error) for effect in card.effects], BLUE),
        hovertemplate="%{y}: %{x:+.3f} GiB<extra></extra>",
    )
    for exact, symbol, name in (
        (False, "circle", literal(card.metric)),
        (True, "diamond-open", "exact"),
    ):
        chosen = [effect for effect in card.effects if effect.exact == exact]
        drawing.add_scatter(
            row=1,
            col=2,
            name=name,
            x=[0.0 if exact else effect.score for effect in chosen],
            y=[literal(step_name(effect)) for effect in chosen],
            mode="markers",
            marker={"color": GREEN if exact else RED, "size": 9, "symbol": symbol},
            error_x=_bars([None if exact else effect.score_error for effect in chosen], RED),
            hovertemplate="%{y}: %{x:+.4f}<extra></extra>",
            visible=True if chosen else "legendonly",
            showlegend=bool(chosen),
        )
    drawing.update_xaxes(title="Δ peak GiB", nticks=6, rangemode="tozero", row=1, col=1)
    drawing.update_xaxes(title=f"Δ {literal(card.metric)}", nticks=6, row=1, col=2)
    if all(effect.exact for effect in card.effects):
        drawing.update_xaxes(range=[-1, 1], tickvals=[0], row=1, col=2)
    drawing.update_yaxes(categoryorder="array", categoryarray=names[::-1])
    words = "; ".join(
        f"{step_name(e)}: {e.peak_bytes / GIB:+.3f} GiB"
        + (", score exact" if e.exact else f", score {e.score:+.3f}")
        for e in card.effects
    )
    return Figure(
        key="knobs",
        card=card.key,
        alt=f"Change of memory and score by step of a knob. {words}.",
        caption="",
        drawing=dressed(drawing, 150 + 30 * len(names)).update_xaxes(zeroline=True),
    )


def draw_predictions(card: Trust) -> Figure | None:
    """Draw predicted against measured peaks; None if nothing was rehearsed."""
    if not card.predictions:
        return None
    drawing = go.Figure()
    ends = [p.predicted for p in card.predictions] + [p.measured for p in card.predictions]
    line = [0.9 * min(ends), 1.05 * max(ends)]
    drawing.add_scatter(
        x=line,
        y=line,
        mode="lines",
        line={"dash": "dot", "color": GREY},
        name="equal",
        hoverinfo="skip",
    )
    for ran_out, name, symbol, colour in (
        (False, "completed", "circle", BLUE),
        (True, "out of memory (needed at least)", "x", RED),
    ):
        chosen = [p for p in card.predictions if p.ran_out == ran_out]
        drawing.add_scatter(
            x=[p.predicted for p in chosen],
            y=[p.measured for p in chosen],
            text=[f"trial {p.number}" for p in chosen],
            mode="markers",
            name=name,
            marker={"color": colour, "symbol": symbol, "size": 8},
            hovertemplate="%{text}: %{x:.3f} predicted, %{y:.3f} measured<extra></extra>",
            showlegend=bool(chosen),
        )
    drawing.update_xaxes(title="predicted peak (GiB)")
    drawing.update_yaxes(title="measured peak (GiB)")
    return Figure(
        key="predictions",
        card=card.key,
        alt=f"Predicted against measured peak memory of {len(card.predictions)} trials.",
        caption="Predicted against measured peak",
        drawing=dressed(drawing, 360),
    )


def draw_growth(card: Trust) -> Figure | None:
    """Draw the hypervolume over trials; None if there are too few to speak of growth."""
    if len(card.growth) < 2:
        return None
    numbers, shares = zip(*card.growth, strict=True)
    drawing = go.Figure()
    drawing.add_scatter(
        x=numbers,
        y=shares,
        mode="lines",
        line={"shape": "hv", "color": BLUE, "width": 2},
        name="hypervolume",
        hovertemplate="trial %{x}: %{y:.1%}<extra></extra>",
    )
    drawing.update_layout(showlegend=False)
    drawing.update_xaxes(title="trial")
    drawing.update_yaxes(
        title="share of the final hypervolume", tickformat=".0%", rangemode="tozero"
    )
    halfway = next(number for number, share in card.growth if share >= 0.9)
    return Figure(
        key="growth",
        card=card.key,
        alt=f"Hypervolume of the front over trials; 90 % of the final one by trial {halfway}.",
        caption="How the front grew",
        drawing=dressed(drawing, 360),
    )


def score_range(card: TradeOff) -> tuple[float, float]:
    """Return the range of scores, with room at the worst end for trials that have none."""
    values = [
        m.score + side * (m.stderr or 0.0)
        for m in card.marks
        if m.score is not None
        for side in (-1, 1)
    ]
    low, high = min(values), max(values)
    room = 0.12 * (high - low) or 0.1 * abs(high) or 0.1
    return low - room, high + room


_DRAWN: tuple[tuple[type[Card], Callable[[Any], Figure | None]], ...] = (
    (TradeOff, draw_tradeoff),
    (Anatomy, draw_anatomy),
    (Knobs, draw_knobs),
    (Trust, draw_predictions),
    (Trust, draw_growth),
)


def _add_dots(drawing: go.Figure, card: TradeOff, state: State, name: str, colour: str) -> None:
    chosen = _of_state(card, state)
    if chosen:
        drawing.add_scatter(
            x=[mark.gib for mark in chosen],
            y=[mark.score for mark in chosen],
            text=[_hover(mark) for mark in chosen],
            mode="markers",
            name=name,
            marker={"color": colour, "size": 7, "opacity": 0.75},
            hovertemplate="%{text}<extra></extra>",
        )


def _add_front(drawing: go.Figure, card: TradeOff) -> None:
    chosen = _of_state(card, "front")
    drawing.add_scatter(
        x=[mark.gib for mark in chosen],
        y=[mark.score for mark in chosen],
        text=[f"#{mark.number}" for mark in chosen],
        customdata=[_hover(mark) for mark in chosen],
        mode="lines+markers+text",
        textposition="top left" if card.maximize else "bottom left",
        name="front",
        line={"shape": "hv", "color": BLUE, "width": 2},
        marker={"color": BLUE, "size": 9},
        error_y=_bars([mark.stderr for mark in chosen], BLUE),
        hovertemplate="%{customdata}<extra></extra>",
    )
    knee = [mark for mark in chosen if mark.number == card.recommended]
    drawing.add_scatter(
        x=[mark.gib for mark in knee],
        y=[mark.score for mark in knee],
        mode="markers",
        name="recommended",
        marker={"symbol": "circle-open", "size": 18, "color": GREEN, "line": {"width": 3}},
        hoverinfo="skip",
    )


def _add_crosses(drawing: go.Figure, card: TradeOff) -> None:
    low, high = score_range(card)
    room = 0.03 * (high - low)
    level = low + room if card.maximize else high - room
    for state, name, symbol in (
        ("out of memory", "out of memory (needed at least)", "x"),
        ("refused", "refused (predicted need)", "x-thin"),
    ):
        chosen = [mark for mark in card.marks if mark.state == state]
        if chosen:
            drawing.add_scatter(
                x=[mark.gib for mark in chosen],
                y=[level] * len(chosen),
                text=[_hover(mark) for mark in chosen],
                mode="markers",
                name=name,
                marker={
                    "symbol": symbol,
                    "size": 9,
                    "color": RED,
                    "line": {"color": RED, "width": 2},
                },
                hovertemplate="%{text}<extra></extra>",
            )


def _of_state(card: TradeOff, state: State) -> list[Mark]:
    return [mark for mark in card.marks if mark.state == state]


def _hover(mark: Mark) -> str:
    score = "" if mark.score is None else f", {mark.score:.4g}"
    return f"#{mark.number}: {mark.gib:.3f} GiB{score}<br>{literal(mark.differs)}"


def _memory_axis(card: TradeOff) -> dict[str, object]:
    if not card.logarithmic:
        return {"rangemode": "tozero"}
    return {"type": "log", "tickformat": "~g", "dtick": "D2"}


def _place(card: TradeOff, gib: float) -> float:
    """Return where an annotation stands: plotly wants the logarithm on such an axis."""
    return math.log10(gib) if card.logarithmic else gib


def _in_gib(amount: float | None) -> float | None:
    return None if amount is None else amount / GIB


def _bars(errors: Sequence[float | None], colour: str) -> dict[str, object]:
    return {"array": list(errors), "color": colour, "thickness": 1.2, "width": 4}
