"""The report as one HTML file that needs no network: style, script, data and plotly in it.

Everything that comes from a run is escaped: by jinja2 where it stands in the page, and as JSON in
which no tag can begin where it stands in a script. A content security policy forbids the page to
fetch anything, whatever a name or a log may hold.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

from jinja2 import Environment, StrictUndefined

from autotune.report.cards import make_cards
from autotune.report.cards.card import Card, Declined
from autotune.report.cards.findings import Findings
from autotune.report.cards.reproduce import Reproduce
from autotune.report.cards.verdict import verdict
from autotune.report.drawing import Figure
from autotune.report.figures import make_figures

MARKER = "autotune report"
"""Stands in every file that this package writes, so that it overwrites only its own."""

PLOTLY_FILE = "plotly.min.js"


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A card with its figures."""

    card: Card | Declined
    figures: tuple[Figure, ...]

    @property
    def declined(self) -> bool:
        """Whether it says only why it has nothing to show."""
        return isinstance(self.card, Declined)


def make_sections(findings: Findings) -> list[Section]:
    """Return every section below the verdict, with its figures."""
    cards = make_cards(findings)
    figures = make_figures(cards)
    return [
        Section(card=card, figures=tuple(f for f in figures if f.card == card.key))
        for card in cards
    ]


def report_html(findings: Findings, *, light: bool = False) -> str:
    """Return the report as a page.

    Args:
        findings: What is reported.
        light: Leave plotly out of the page, which then loads `PLOTLY_FILE` from beside it.
    """
    sections = make_sections(findings)
    data = next(s.card for s in sections if isinstance(s.card, Reproduce))
    drawings = {f"figure-{f.key}": f.drawing.to_plotly_json() for s in sections for f in s.figures}
    return fill_template(
        "report.html",
        marker=MARKER,
        name=findings.run.name,
        head=verdict(findings),
        sections=sections,
        beside=" 'self' file:" if light else "",
        style=_part("report.css"),
        script=_part("report.js"),
        plotly="" if light else plotly_script(),
        plotly_file=PLOTLY_FILE if light else "",
        drawings=script_json(drawings),
        data=script_text(data.data),
        csv=_data_uri("text/csv", data.csv),
        json=_data_uri("application/json", data.data),
    )


def fill_template(name: str, /, **values: object) -> str:
    """Return a template of this package filled in, with all values escaped that it does not trust.

    Args:
        name: File of the template.
        **values: What it names.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.from_string(_part(name)).render(values)


def plotly_script() -> str:
    """Return plotly's own JavaScript."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def script_json(document: Mapping[str, object] | Sequence[object]) -> str:
    """Return a document as JSON that can stand in a script of a page."""
    from plotly.utils import PlotlyJSONEncoder

    return script_text(json.dumps(document, cls=PlotlyJSONEncoder, allow_nan=False))


def script_text(text: str) -> str:
    """Return JSON in which no tag and no comment of HTML can begin or end."""
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _part(name: str) -> str:
    return files("autotune.report").joinpath("page", name).read_text(encoding="utf-8")


def _data_uri(kind: str, text: str) -> str:
    encoded = base64.b64encode(text.encode("utf-8", "replace")).decode("ascii")
    return f"data:{kind};charset=utf-8;base64,{encoded}"
