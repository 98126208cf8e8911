"""The report as a browser shows it, without any network: no error, every figure drawn."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from autotune.knobs import BUILTIN
from autotune.report.cards.findings import Findings
from autotune.report.files import write_report
from autotune.report.html import report_html
from tests.reports import Page, findings, keep_all, make_run
from tests.unit.test_cards import TOO_LARGE
from tests.unit.test_page import hostile

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next((path for path in map(shutil.which, BROWSERS) if path), None)
FIGURES = (
    "tradeoff",
    "anatomy",
    "timeline-1",
    "timeline-3",
    "timeline-4",
    "knobs",
    "predictions",
    "growth",
)
REHEARSED = {1: 5 * 2**30}

pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no Chromium here: apt-get install chromium"
)


@dataclass(frozen=True)
class Seen:
    """What a browser made of a page: its document after all scripts ran, and what it complained."""

    page: Page
    complaints: list[str]


def look(path: Path, *options: str) -> Seen:
    """Open a file with the network cut, and return what the browser has in the end."""
    assert BROWSER is not None
    command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    command += [f"--user-data-dir={path.parent / 'profile'}", "--disable-dev-shm-usage"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", "--proxy-server=http://127.0.0.1:9"]
    command += ["--enable-logging=stderr", "--virtual-time-budget=20000", *options]
    done = subprocess.run(
        [*command, path.absolute().as_uri()],
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    lines = done.stderr.splitlines()
    return Seen(page=Page(done.stdout), complaints=[line for line in lines if "CONSOLE" in line])


def root(seen: Seen) -> dict[str, str | None]:
    return seen.page.all("html")[0]


def drawn(seen: Seen) -> list[str]:
    """Return the figures in which plotly has drawn something."""
    plots = [tag for tag in seen.page.all("div") if "js-plotly-plot" in str(tag.get("class"))]
    return [str(tag["id"]).removeprefix("figure-") for tag in plots]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    folder = tmp_path_factory.mktemp("browser")
    path = folder / "report.html"
    keep_all(make_run(TOO_LARGE, folder=folder))
    path.write_text(report_html(findings(TOO_LARGE, folder=folder, rehearsed=REHEARSED)))
    return look(path, "--dump-dom")


def test_page_opens_without_a_complaint_and_draws_every_figure(seen: Seen) -> None:
    assert seen.complaints == []
    assert root(seen)["data-drawn"] == "yes"
    assert drawn(seen) == list(FIGURES)
    assert any(tag.get("class") == "main-svg" for tag in seen.page.all("svg"))


def test_cards_and_names_are_there(seen: Seen) -> None:
    picks = [tag for tag in seen.page.all("li") if "pick" in str(tag.get("class"))]
    assert len(picks) == 3
    button = next(tag for tag in seen.page.all("button") if tag.get("id") == "theme")
    assert button["aria-label"] == "Use dark colours"
    assert {"budget 14.45 GiB", "#3"} <= set(seen.page.words)


def test_light_page_takes_plotly_from_beside_it(tmp_path: Path) -> None:
    found = Findings.of(make_run(TOO_LARGE, folder=tmp_path), BUILTIN)
    page, beside = write_report(found, ["html"], light=True)
    assert page.stat().st_size < 0.05 * beside.stat().st_size
    seen = look(page, "--dump-dom")
    assert seen.complaints == []
    assert root(seen)["data-drawn"] == "yes"


def test_hostile_names_do_nothing_and_dark_colours_are_the_systems(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(report_html(hostile()), encoding="utf-8")
    seen = look(path, "--dump-dom", "--blink-settings=preferredColorScheme=0")
    assert seen.complaints == []
    assert root(seen)["data-drawn"] == "yes"
    assert seen.page.all("img") == []
    button = next(tag for tag in seen.page.all("button") if tag.get("id") == "theme")
    assert button["aria-label"] == "Use light colours"
    styles = " ".join(str(tag.get("style")) for tag in seen.page.all("text"))
    assert "rgb(230, 234, 239)" in styles, "the colour of text on a dark page"


def test_page_prints(tmp_path: Path) -> None:
    path, printed = tmp_path / "report.html", tmp_path / "report.pdf"
    path.write_text(report_html(findings(TOO_LARGE)))
    look(path, f"--print-to-pdf={printed}", "--no-pdf-header-footer")
    content = printed.read_bytes()
    assert content.startswith(b"%PDF")
    pages = [int(number) for number in re.findall(rb"/Type /Pages.*?/Count (\d+)", content, re.S)]
    assert 2 <= max(pages) <= 12
