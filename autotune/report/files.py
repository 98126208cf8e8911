"""Writes the report into files: a page, Markdown, and the trade-off as a picture.

A file that another program wrote is never overwritten: ours carry a mark, and only those are
written anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from autotune.core.errors import BadValue, MissingLibrary, StorageError
from autotune.report.cards.card import Declined
from autotune.report.cards.findings import Findings
from autotune.report.cards.tradeoff import TradeOff, tradeoff_card
from autotune.report.figures import draw_tradeoff
from autotune.report.html import MARKER, PLOTLY_FILE, plotly_script, report_html
from autotune.report.markdown import report_markdown
from autotune.report.svg import tradeoff_svg

STEM = "report"
_HEAD = 2000
"""Bytes of a file in which its mark must stand."""


def parse_formats(text: str) -> list[str]:
    """Read formats such as `html,md`.

    Raises:
        BadValue: If one is not known.
    """
    formats = list(dict.fromkeys(word.strip().lower() for word in text.split(",") if word.strip()))
    for name in formats:
        if name not in FORMATS:
            raise BadValue(
                f"'{name}' is not a format of reports",
                where="--format",
                help=f"known: {', '.join(FORMATS)}; several at once: --format html,md",
            )
    if not formats:
        raise BadValue("no format is named", where="--format", help=f"known: {', '.join(FORMATS)}")
    return formats


def write_report(
    findings: Findings, formats: Sequence[str], output: Path | None = None, *, light: bool = False
) -> list[Path]:
    """Write a report and return its files.

    Args:
        findings: What is reported.
        formats: Keys of `FORMATS`.
        output: The file; with several formats, each takes its own ending. By default `report.*`
            in the run's folder.
        light: Write plotly's script once beside the page instead of into it.

    Raises:
        StorageError: If a file that is not ours stands in the way, or cannot be written.
        MissingLibrary: If a format needs a library that is not installed.
        BadValue: If there is no trade-off to draw.
    """
    files: dict[Path, bytes] = {}
    for name in formats:
        path = _place(findings, name, output, alone=len(formats) == 1)
        files[path] = FORMATS[name](findings) if name != "html" else _page(findings, light=light)
    for path, content in files.items():
        _write(path, content, ours=output is None)
    if light and "html" in formats:
        page = _place(findings, "html", output, alone=len(formats) == 1)
        beside = page.with_name(PLOTLY_FILE)
        _write(beside, plotly_script().encode(), ours=True)
        files[beside] = b""
    return list(files)


def _page(findings: Findings, *, light: bool = False) -> bytes:
    return report_html(findings, light=light).encode("utf-8", "replace")


def _markdown(findings: Findings) -> bytes:
    return report_markdown(findings).encode("utf-8", "replace")


def _svg(findings: Findings) -> bytes:
    card = _tradeoff(findings)
    return tradeoff_svg(card, draw_tradeoff(card).alt).encode("utf-8", "replace")


def _png(findings: Findings) -> bytes:
    drawing = draw_tradeoff(_tradeoff(findings)).drawing
    drawing.update_layout(paper_bgcolor="#ffffff", font={"color": "#1c222b", "size": 13})
    if find_spec("kaleido") is None:
        raise MissingLibrary(
            "a PNG needs kaleido and a Chrome, and kaleido is not installed",
            help="pip install 'autotune-memory[png]'\nautotune report --format svg needs nothing",
        )
    try:
        return bytes(drawing.to_image(format="png", width=900, scale=2))
    except (RuntimeError, ValueError, OSError) as error:
        raise MissingLibrary(
            f"kaleido could not draw a PNG: {' '.join(str(error).split())[:300]}",
            help="it needs a Chrome: plotly_get_chrome\nautotune report --format svg needs nothing",
        ) from error


FORMATS: Mapping[str, Callable[[Findings], bytes]] = {
    "html": _page,
    "md": _markdown,
    "svg": _svg,
    "png": _png,
}
"""What writes each format."""


def _tradeoff(findings: Findings) -> TradeOff:
    card = tradeoff_card(findings)
    if isinstance(card, Declined):
        raise BadValue(
            card.reason, where="--format", help=findings.command("show", rest=" --failed")
        )
    return card


def _place(findings: Findings, name: str, output: Path | None, *, alone: bool) -> Path:
    if output is None:
        folder = findings.run.folder
        stem = STEM if folder.is_dir() else f"{findings.run.name}-{STEM}"
        return (folder if folder.is_dir() else Path()) / f"{stem}.{name}"
    if output.is_dir():
        return output / f"{findings.run.name}-{STEM}.{name}"
    return output if alone else output.with_suffix(f".{name}")


def _write(path: Path, content: bytes, *, ours: bool) -> None:
    try:
        if not ours and path.exists() and MARKER.encode() not in path.read_bytes()[:_HEAD]:
            raise StorageError(
                f"'{path}' exists and was not written by autotune, so it is not overwritten",
                help="name another file: --output FILE",
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise StorageError(
            f"cannot write '{path}': {error.strerror or error}",
            help="name a file that can be written: --output FILE",
        ) from error
