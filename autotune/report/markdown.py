"""The report as Markdown: its sentences and tables, for issues, wikis and pull requests."""

from __future__ import annotations

from collections.abc import Sequence

from autotune.report.cards import make_cards
from autotune.report.cards.card import Card, Declined, Table
from autotune.report.cards.findings import Findings
from autotune.report.cards.reproduce import Reproduce
from autotune.report.cards.verdict import Pick, verdict
from autotune.report.html import MARKER

_SPECIAL = "\\`*_[]<>|#~"


def report_markdown(findings: Findings) -> str:
    """Return the report as Markdown."""
    head = verdict(findings)
    parts = [f"<!-- {MARKER} -->", f"# {_plain(head.title)}"]
    parts += [" · ".join(_plain(fact) for fact in head.facts)]
    parts += [_plain(text) for text in head.sentences]
    if head.picks:
        parts += [_table(_picks_table(head.picks))]
    for card in make_cards(findings):
        parts += _section(card)
    return "\n\n".join(parts) + "\n"


def _section(card: Card | Declined) -> list[str]:
    parts = [f"## {_plain(card.title)}"]
    if isinstance(card, Declined):
        return [*parts, f"Not shown: {_plain(card.reason)}."]
    parts += [_plain(text) for text in card.sentences]
    if isinstance(card, Reproduce):
        parts += [_fenced(card.command)]
    parts += [_table(table) for table in card.tables]
    if isinstance(card, Reproduce):
        parts += [_fenced(card.space)]
    return parts


def _picks_table(picks: Sequence[Pick]) -> Table:
    rows = [
        (
            ", ".join(pick.roles),
            str(pick.number),
            f"{pick.score} {pick.error}".strip(),
            pick.peak,
            pick.rate,
            pick.differs,
        )
        for pick in picks
    ]
    return Table(
        caption="Configurations worth looking at",
        columns=("", "#", picks[0].metric, "peak GiB", "tok/s", "differs from the baseline"),
        rows=tuple(rows),
        numbers=frozenset((1, 2, 3, 4)),
        marked=frozenset(i for i, pick in enumerate(picks) if pick.recommended),
    )


def _table(table: Table) -> str:
    heads = [_plain(name) for name in table.columns]
    rules = ["---:" if index in table.numbers else "---" for index in range(len(heads))]
    lines = [_row(heads), _row(rules)]
    for index, cells in enumerate(table.rows):
        texts = [_plain(cell) for cell in cells]
        if index in table.marked:
            texts = [f"**{text}**" if text else text for text in texts]
        lines.append(_row(texts))
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    """Return a text that Markdown shows letter by letter, on one line, but for `code`."""
    parts = " ".join(text.split()).split("`")
    shown = [_code(part) if index % 2 else _escaped(part) for index, part in enumerate(parts)]
    return "".join(shown)


def _escaped(text: str) -> str:
    return "".join(f"\\{sign}" if sign in _SPECIAL else sign for sign in text)


def _code(text: str) -> str:
    return f"`{text.replace('|', chr(92) + '|')}`" if text.strip() else ""


def _fenced(text: str) -> str:
    """Return a text between fences longer than any in it."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}\n{text}\n{fence}"
