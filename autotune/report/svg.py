"""The trade-off as a drawing of its own, for documents: a small SVG that needs no other program."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from autotune.report.cards.tradeoff import Mark, TradeOff
from autotune.report.drawing import GREY, RED
from autotune.report.figures import score_range
from autotune.report.html import MARKER, fill_template

WIDTH, HEIGHT = 860, 480
LEFT, RIGHT, TOP, BOTTOM = 76, 840, 34, 420
Scale = Callable[[float], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """A line of the grid: where, and what stands beside it."""

    at: float
    text: str


def tradeoff_svg(card: TradeOff, alt: str) -> str:
    """Return the trade-off as an SVG document.

    Args:
        card: The trade-off.
        alt: What it shows, in words.
    """
    low, high = score_range(card)
    least, most = _memory_range(card)
    x, y = _across(least, most, logarithmic=card.logarithmic), _upward(low, high)
    front = [mark for mark in card.marks if mark.state == "front"]
    worst = low if card.maximize else high
    level = y(worst) + (-12 if card.maximize else 12)
    better = "higher" if card.maximize else "lower"
    scale = ", logarithmic" if card.logarithmic else ""
    budget = Tick(at=x(card.limit_gib), text=f"budget {card.limit_gib:.2f} GiB")
    return fill_template(
        "tradeoff.svg",
        marker=MARKER,
        alt=alt,
        width=WIDTH,
        height=HEIGHT,
        left=LEFT,
        right=RIGHT,
        top=TOP,
        bottom=BOTTOM,
        x_title=f"peak memory (GiB{scale})",
        y_title=f"{card.metric} ({better} is better)",
        x_ticks=[Tick(at=x(v), text=f"{v:g}") for v in _memory_ticks(card, least, most)],
        y_ticks=[Tick(at=y(v), text=f"{v:.6g}") for v in even_ticks(low, high)],
        budget=budget if card.shows_budget else None,
        dots=[
            {
                "x": x(m.gib),
                "y": y(m.score),
                "colour": GREY if m.state == "dominated" else RED,
                "text": _words(m),
            }
            for m in card.marks
            if m.score is not None and m.state in ("dominated", "over")
        ],
        crosses=[
            {"x": x(m.gib), "y": level, "text": _words(m)}
            for m in card.marks
            if m.state in ("out of memory", "refused")
        ],
        steps=_steps(front, x, y),
        front=[_point(card, mark, x, y) for mark in front],
    )


def even_ticks(low: float, high: float, most: int = 7) -> list[float]:
    """Return round numbers between two: multiples of 1, 2 or 5 times a power of ten."""
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)
    first = math.ceil(low / step)
    return [index * step for index in range(first, math.floor(high / step) + 1)]


def _point(card: TradeOff, mark: Mark, x: Scale, y: Scale) -> dict[str, object]:
    assert mark.score is not None
    error = mark.stderr
    return {
        "x": x(mark.gib),
        "y": y(mark.score),
        "bar": None if error is None else (y(mark.score - error), y(mark.score + error)),
        "number": mark.number,
        "recommended": mark.number == card.recommended,
        "lift": -8 if card.maximize else 18,
        "text": _words(mark),
    }


def _words(mark: Mark) -> str:
    score = "" if mark.score is None else f", {mark.score:.4g}"
    return f"#{mark.number}, {mark.state}: {mark.gib:.3f} GiB{score}; {mark.differs}"


def _steps(front: list[Mark], x: Scale, y: Scale) -> str:
    """Return the path of the front: the best score that each amount of memory allows."""
    path = ""
    for mark in front:
        assert mark.score is not None
        here = f"H{x(mark.gib)}V{y(mark.score)}"
        path += here if path else f"M{x(mark.gib)} {y(mark.score)}"
    return path


def _memory_range(card: TradeOff) -> tuple[float, float]:
    amounts = [mark.gib for mark in card.marks]
    amounts += [card.limit_gib] if card.shows_budget else []
    if card.logarithmic:
        return 0.85 * min(amounts), 1.15 * max(amounts)
    return 0.0, 1.06 * max(amounts)


def _memory_ticks(card: TradeOff, least: float, most: float) -> list[float]:
    if not card.logarithmic:
        return even_ticks(least, most)
    powers = range(math.floor(math.log10(least)), math.ceil(math.log10(most)) + 1)
    ticks = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    return [tick for tick in ticks if least <= tick <= most]


def _across(least: float, most: float, *, logarithmic: bool) -> Scale:
    def place(value: float) -> float:
        if logarithmic:
            share = math.log(value / least) / math.log(most / least)
        else:
            share = (value - least) / (most - least)
        return round(LEFT + share * (RIGHT - LEFT), 1)

    return place


def _upward(low: float, high: float) -> Scale:
    return lambda value: round(BOTTOM - (value - low) / (high - low) * (BOTTOM - TOP), 1)
