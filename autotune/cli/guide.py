"""`autotune guide`: the documentation, offline."""

from __future__ import annotations

import sys
from importlib import resources
from typing import Annotated, TypedDict

from cyclopts import Parameter
from rich.text import Text

from autotune.cli.options import Common
from autotune.core.errors import UnknownName
from autotune.report.document import SCHEMA
from autotune.report.text import Column, Listing, make_table

ORDER = (
    "first-search",
    "read-the-report",
    "knobs",
    "memory",
    "write-a-space",
    "write-an-objective",
    "write-a-knob",
    "parallel",
    "cluster",
    "export-and-train",
    "queries",
    "footguns",
    "method",
)
"""Topics in the order in which they are read; others follow by name."""


class Page(TypedDict):
    """One page."""

    topic: str
    title: str
    text: str


def guide(
    topic: Annotated[str | None, Parameter(name="TOPIC", show_default=False)] = None,
    /,
    *,
    common: Common = Common(),  # noqa: B008  (frozen; cyclopts fills in what was typed)
) -> None:
    """Show a page of the guide, or list them.

    Args:
        topic: A page, such as first-search; by default the list of all.
        common: Options of every command.
    """
    found = pages()
    if topic is None:
        rows = [(page["topic"], page["title"]) for page in found.values()]
        table = make_table((Column("topic"), Column("what it is about", folds=True)), rows)
        document = {"schema": SCHEMA, "topics": [{"topic": t, "title": name} for t, name in rows]}
        lines = [("autotune guide TOPIC", "one page")]
        common.show(document, table, Text(), Listing("Next", lines))
        return
    if topic not in found:
        raise UnknownName.among("topic", topic, found, listing="autotune guide")
    if common.json:
        common.print_document({"schema": SCHEMA, **found[topic]})
    else:
        sys.stdout.write(found[topic]["text"])  # commands in it are not to be wrapped


def pages() -> dict[str, Page]:
    """Return every page that is shipped, by topic, in the order in which they are read."""
    folder = resources.files("autotune") / "guide"
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".md"))
    topics = [name.removesuffix(".md") for name in names]
    topics.sort(key=lambda topic: (ORDER.index(topic) if topic in ORDER else len(ORDER), topic))
    found = {}
    for topic in topics:
        text = (folder / f"{topic}.md").read_text(encoding="utf-8")
        title = next((line[2:] for line in text.splitlines() if line.startswith("# ")), topic)
        found[topic] = Page(topic=topic, title=title.strip(), text=text)
    return found
