"""What a section is made of: sentences and tables, all computed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table of texts.

    Attributes:
        caption: What it shows, for those who cannot see where it stands.
        columns: Headings.
        rows: Cells by row.
        numbers: Indices of the columns that hold numbers.
        marked: Indices of the rows that are recommended.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: frozenset[int] = frozenset()
    marked: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A section.

    Attributes:
        key: Its anchor.
        title: Its heading.
        short: What the list of sections calls it.
        sentences: What it says, a paragraph each.
        tables: Tables below its figures.
    """

    key: str
    title: str
    short: str
    sentences: tuple[str, ...]
    tables: tuple[Table, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Declined:
    """A section that has nothing to show, and why."""

    key: str
    title: str
    short: str
    reason: str


def count(number: int, one: str, many: str | None = None) -> str:
    """Say how many of something there are: `one trial`, `12 trials`, `no trial`."""
    words = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    word = words[number] if 0 <= number < len(words) else str(number)
    return f"{word} {one if number in (0, 1) else many or f'{one}s'}"


def sentence(text: str) -> str:
    """Return a text that begins with a capital letter."""
    return text[:1].upper() + text[1:]
