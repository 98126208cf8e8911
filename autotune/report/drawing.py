"""What all figures share: their colours, their dress, and the words that stand for them.

Colours of text and grid are left to the page, which knows whether it is light or dark; colours of
data are chosen to be told apart on both, and by people who see few colours (Okabe and Ito 2008).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import plotly.graph_objects as go

BLUE, RED, GREY, GREEN = "#3b7dc4", "#d0523f", "#9aa3ad", "#1d9a63"
PARTS: Mapping[str, str] = {
    "weights": "#3b7dc4",
    "gradients": "#6bb5e8",
    "optimizer": "#8d62b5",
    "activations": "#e3a33c",
    "logits": "#c98362",
    "inputs": "#4aa789",
    "other": "#b4bac2",
}
"""Colour of each part of memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A figure.

    Attributes:
        key: Its name in the page.
        card: Key of the card that it belongs to.
        alt: What it shows, in words.
        caption: What stands below it.
        drawing: The plotly figure.
    """

    key: str
    card: str
    alt: str
    caption: str
    drawing: go.Figure


def literal(text: str) -> str:
    """Return a text as plotly shows it letter by letter, though it reads some tags of HTML."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def dressed(drawing: go.Figure, height: int) -> go.Figure:
    """Give a drawing what every figure has.

    Args:
        drawing: Changed, and returned.
        height: In pixels.
    """
    drawing.update_layout(
        height=height,
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 10, "r": 14, "t": 46, "b": 10},
        hoverlabel={"align": "left"},
    )
    drawing.update_layout(
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "title": None}
    )
    drawing.update_xaxes(automargin=True, zeroline=False, showline=False)
    drawing.update_yaxes(automargin=True, zeroline=False, showline=False)
    return drawing
