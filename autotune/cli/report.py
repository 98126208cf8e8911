"""`autotune report`: the whole story of a run as one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import RenderableType
from rich.text import Text

from autotune.cli.options import Common, Flag, RunName, Storage
from autotune.knobs import BUILTIN
from autotune.report.document import SCHEMA, ReportDocument, run_head
from autotune.report.text import Listing
from autotune.storage.run import Run

_PATIENCE_SECONDS = 60.0
"""Time after which a report begins no further rehearsal."""


def report(
    run: RunName = None,
    /,
    *,
    output: Annotated[
        Path | None, Parameter(name=["--output", "-o"], metavar="FILE", show_default=False)
    ] = None,
    format_: Annotated[str, Parameter(name="--format", metavar="html,md,svg,png")] = "html",
    light: Annotated[bool, Flag] = False,
    open_: Annotated[bool, Parameter(name="--open"), Flag] = False,
    no_rehearsal: Annotated[bool, Flag] = False,
    storage: Storage = None,
    common: Common = Common(),  # noqa: B008  (frozen; cyclopts fills in what was typed)
) -> None:
    """Write the whole story of a run as one HTML file, which needs no network.

    Args:
        run: The run; by default the latest.
        output: The file; by default report.html in the run's folder.
        format_: html and md have everything, svg and png the trade-off; several: html,md.
        light: Write plotly's 4.6 MB beside the file, once for all reports of that folder.
        open_: Open it in the browser.
        no_rehearsal: Leave out memory timelines that are not kept yet, instead of making them.
        storage: SQLAlchemy URL of the study database, if it is not in the run's folder.
        common: Options of every command.
    """
    from autotune.report.cards import make_cards
    from autotune.report.cards.card import Declined
    from autotune.report.cards.findings import Findings
    from autotune.report.files import parse_formats, write_report

    formats = parse_formats(format_)
    found = Run.open(run, results=common.results, storage=storage)
    if not no_rehearsal and {"html", "md"} & set(formats):
        _rehearse(found, common)
    findings = Findings.of(found, BUILTIN, common.where(storage))
    written = write_report(findings, formats, output, light=light)
    cards = make_cards(findings)
    document: ReportDocument = {
        "schema": SCHEMA,
        "run": run_head(found),
        "files": [{"path": str(path), "bytes": path.stat().st_size} for path in written],
        "sections": [
            {"name": c.key, "declined": c.reason if isinstance(c, Declined) else None}
            for c in cards
        ],
    }
    common.show(document, *_screen(document, written, findings.command("show")))
    if open_:
        import webbrowser

        webbrowser.open(written[0].absolute().as_uri())


def _rehearse(run: Run, common: Common) -> None:
    """Make the memory timelines that the end of the run left out, where its data still is."""
    from autotune.memory.rehearsal_worker import RehearsalWorker
    from autotune.repeat import has_data, rehearsal_spec
    from autotune.timelines import keep_timelines, missing, shown

    left = missing(run.folder, shown(run.records, run.metric))
    if not left or run.status == "running" or not has_data(run):
        return
    with RehearsalWorker() as worker:
        keep_timelines(
            run.folder,
            left,
            lambda record: rehearsal_spec(run, record),
            worker,
            seconds=_PATIENCE_SECONDS,
            told=lambda text: common.say(Text(text, style="dim")),
        )


def _screen(document: ReportDocument, written: list[Path], show: str) -> list[RenderableType]:
    parts: list[RenderableType] = [
        Text(f"{file['path']}  {file['bytes'] / 1e6:.1f} MB") for file in document["files"]
    ]
    for section in document["sections"]:
        if section["declined"]:
            parts.append(Text(f"without {section['name']}: {section['declined']}", style="dim"))
    rows = [(show, "the same in the terminal, in short")]
    if written[0].suffix == ".html":
        rows.insert(0, (f"xdg-open {written[0]}", "look at it; --open does this at once"))
    return [*parts, Text(), Listing("Next", rows)]
