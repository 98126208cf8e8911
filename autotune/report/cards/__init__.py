"""Sections of the report: each is data computed from a run, or says why it is not there.

A card holds what its section shows: sentences, tables, and the numbers that its figures are drawn
from. It knows nothing of HTML or plotly, so that tests assert on data, and the same cards become
a page, Markdown and JSON.
"""

from __future__ import annotations

from collections.abc import Callable

from autotune.report.cards.anatomy import anatomy_card
from autotune.report.cards.card import Card, Declined
from autotune.report.cards.failures import failures_card
from autotune.report.cards.findings import Findings
from autotune.report.cards.knobs import knobs_card
from autotune.report.cards.method import method_card
from autotune.report.cards.next_gb import next_gb_card
from autotune.report.cards.reproduce import reproduce_card
from autotune.report.cards.timelines import timelines_card
from autotune.report.cards.tradeoff import tradeoff_card
from autotune.report.cards.trust import trust_card

CARDS: tuple[Callable[[Findings], Card | Declined], ...] = (
    tradeoff_card,
    next_gb_card,
    anatomy_card,
    timelines_card,
    knobs_card,
    trust_card,
    failures_card,
    reproduce_card,
    method_card,
)
"""Every section below the verdict, in the order in which they are shown."""


def make_cards(findings: Findings) -> list[Card | Declined]:
    """Return every section of the report below the verdict."""
    return [card(findings) for card in CARDS]
