"""The page: whole without a network, readable without a script, and safe with any names."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

from autotune.core.errors import BadValue, MissingLibrary, StorageError
from autotune.core.outcome import Crashed
from autotune.core.workload import Metric
from autotune.knobs import BUILTIN
from autotune.report.cards.findings import Findings
from autotune.report.cards.tradeoff import TradeOff, tradeoff_card
from autotune.report.figures import make_figures
from autotune.report.files import FORMATS, parse_formats, write_report
from autotune.report.html import MARKER, PLOTLY_FILE, report_html, script_text
from autotune.report.markdown import report_markdown
from autotune.report.svg import even_ticks, tradeoff_svg
from tests.cli.recorded import NAME, spec
from tests.reports import FEW, Page, findings, make_run
from tests.unit.test_cards import CRASHES, TOO_LARGE

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'`{{7*7}}\u2028"
SECTIONS = [
    "trade-off",
    "next-gb",
    "memory",
    "timeline",
    "knobs",
    "trust",
    "failures",
    "reproduce",
    "method",
]


def hostile() -> Findings:
    """A run in which everything that users or programs may name is an attack."""
    metric = Metric(name=f"accuracy{HOSTILE}", maximize=True)
    own = spec()
    own = replace(
        own,
        facts=replace(
            own.facts,
            data=HOSTILE,
            metrics=(metric,),
            model=replace(own.facts.model, name=HOSTILE),
            workload=replace(own.facts.workload, data=HOSTILE, objective=HOSTILE),
        ),
        space=HOSTILE,
        space_source=HOSTILE,
        overrides={HOSTILE: HOSTILE},
        device={**own.device, "name": HOSTILE},
        versions={HOSTILE: HOSTILE, "autotune-memory": HOSTILE},
    )
    trials = [
        (values, replace(outcome, scores={metric.name: outcome.scores["accuracy"]}))
        for values, outcome in FEW
    ]
    crash = Crashed(error=HOSTILE, traceback=f"{HOSTILE}\n{HOSTILE}\n{HOSTILE}")
    return Findings.of(
        make_run([*trials, ({"optimizer": "lion"}, crash)], name=HOSTILE, own=own), BUILTIN
    )


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(report_html(findings(TOO_LARGE, rehearsed={1: 5 * 2**30}), light=True))


def test_page_has_language_title_and_every_section(page: Page) -> None:
    assert page.all("html") == [{"lang": "en"}]
    assert [s["id"] for s in page.all("section")] == ["verdict", *SECTIONS]
    links = [a["href"] for a in page.all("a") if str(a.get("href")).startswith("#")]
    assert links == ["#main", *(f"#{key}" for key in SECTIONS)]
    assert len([tag for tag in page.all("li") if "pick" in str(tag.get("class"))]) == 3


def test_every_figure_has_words_and_a_table_stands_below(page: Page) -> None:
    plots = [tag for tag in page.all("div") if tag.get("class") == "plot"]
    assert [tag["id"] for tag in plots] == [
        f"figure-{key}" for key in ("tradeoff", "anatomy", "knobs", "predictions", "growth")
    ]
    assert all(tag["role"] == "img" and len(str(tag["aria-label"])) > 40 for tag in plots)
    assert len(page.all("table")) == len(page.all("caption")) >= 6
    assert all(tag["scope"] == "col" for tag in page.all("th"))


def test_controls_have_names(page: Page) -> None:
    copies = [tag for tag in page.all("button") if "copy" in str(tag.get("class"))]
    assert copies
    assert all(str(tag["aria-label"]).startswith("Copy: autotune ") for tag in copies)
    regions = [tag for tag in page.all("div") if tag.get("class") == "scroll"]
    assert all(tag["tabindex"] == "0" and tag["aria-label"] for tag in regions)


def test_nothing_is_fetched(page: Page) -> None:
    for _, attributes in page.tags:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            value = attributes.get(name) or ""
            assert value.startswith(("#", "data:")) or value in ("", PLOTLY_FILE)
    ours = re.sub(r"http://www\.w3\.org/\S+", "", page.text)
    assert "http" not in re.sub(r"http-equiv", "", ours)
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv"))
    assert str(policy).startswith("default-src 'none'")


def test_full_page_holds_plotly_and_forbids_every_address() -> None:
    full = Page(report_html(findings(FEW)))
    assert len(full.scripts["plotly"]) > 1_000_000
    policy = next(str(m["content"]) for m in full.all("meta") if m.get("http-equiv"))
    assert "script-src 'unsafe-inline';" in policy


def test_embedded_trials_read_back(page: Page) -> None:
    document = json.loads(page.scripts["trials"])
    assert [trial["trial"] for trial in document["trials"]] == list(range(7))
    links = {str(a["download"]): str(a["href"]) for a in page.all("a") if "download" in a}
    assert set(links) == {f"{NAME}.csv", f"{NAME}.json"}
    raw = base64.b64decode(links[f"{NAME}.json"].partition("base64,")[2])
    assert json.loads(raw) == document
    assert b"trial,origin,status" in base64.b64decode(links[f"{NAME}.csv"].partition("base64,")[2])


def test_drawings_have_numbers_that_json_knows(page: Page) -> None:
    drawings = json.loads(page.scripts["drawings"])
    front = next(t for t in drawings["figure-tradeoff"]["data"] if t["name"] == "front")
    assert list(front["x"]) == [1.0, 2.0, 5.0]
    assert front["line"]["shape"] == "hv"
    crosses = [t for t in drawings["figure-tradeoff"]["data"] if "out of memory" in t["name"]]
    assert list(crosses[0]["x"]) == [20.0]


def test_hostile_names_stay_text() -> None:
    attacked = Page(report_html(hostile(), light=True))
    plain = Page(report_html(findings((*FEW, *CRASHES)), light=True))
    assert [tag for tag, _ in attacked.tags if tag in ("script", "img", "iframe")] == [
        tag for tag, _ in plain.tags if tag in ("script", "img", "iframe")
    ]
    assert not any(name.startswith("on") for _, a in attacked.tags for name in a)
    assert "alert(1)" not in "".join(
        text for key, text in attacked.scripts.items() if key.startswith("script")
    )
    assert any("<img src=x onerror=alert(2)>" in word for word in attacked.words), "shown as typed"
    assert all("`" not in tag for tag, _ in attacked.tags)
    assert "49" not in "".join(w for w in attacked.words if "alert" in w), "no template in a value"
    assert json.loads(attacked.scripts["trials"])["run"]["name"] == HOSTILE


def test_plotly_is_given_no_tag_that_a_run_named() -> None:
    figures = make_figures([tradeoff_card(hostile())])
    text = json.dumps(figures[0].drawing.to_plotly_json(), default=list)
    assert "<img" not in text
    assert "<script" not in text


def test_text_of_a_script_ends_no_script() -> None:
    text = script_text(json.dumps({"a": "</script><!--\u2028&"}))
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"a": "</script><!--\u2028&"}


def test_declined_sections_say_why() -> None:
    declined = Page(report_html(findings(CRASHES), light=True))
    text = " ".join(declined.words)
    assert "Not shown: no trial completed within the budget" in text
    assert [s["id"] for s in declined.all("section")] == ["verdict", *SECTIONS]


def test_markdown_has_the_same_and_shows_signs_as_typed() -> None:
    text = report_markdown(findings(TOO_LARGE))
    assert text.startswith(f"<!-- {MARKER} -->\n\n# Text classification within 16.0 GB")
    assert text.count("\n## ") == len(SECTIONS)
    assert "| **Recommended: knee, Cheapest within 1% of the best** |" in text
    outside = re.sub(r"^(`{3,})\n.*?^\1$", "", report_markdown(hostile()), flags=re.S | re.M)
    outside = re.sub(r"`[^`\n]+`", "", outside)
    assert "\\<img" in outside
    assert "<img" not in outside.replace("\\<img", "")


def test_svg_is_one_document_and_escapes() -> None:
    for found in (findings(TOO_LARGE), findings(FEW[1:]), hostile()):
        card = tradeoff_card(found)
        assert isinstance(card, TradeOff)
        root = ElementTree.fromstring(tradeoff_svg(card, "what it shows"))
        circles = root.findall(".//{http://www.w3.org/2000/svg}circle")
        scored = sum(mark.score is not None for mark in card.marks)
        assert len(circles) == scored + 1, "the recommended one has a ring"


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.27, 0.9), (-3.0, 40.0), (1e-4, 2e-4)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    ticks = even_ticks(low, high)
    assert 3 <= len(ticks) <= 9
    assert all(low - 1e-12 <= tick <= high + 1e-12 for tick in ticks)
    steps = {round((b - a) / (high - low), 9) for a, b in pairwise(ticks)}
    assert len(steps) == 1


def test_files_are_written_where_asked(tmp_path: Path) -> None:
    run = make_run(FEW, folder=tmp_path)
    found = Findings.of(run, BUILTIN)
    assert write_report(found, ["md", "svg"]) == [tmp_path / "report.md", tmp_path / "report.svg"]
    assert write_report(found, ["md"], tmp_path / "deep" / "x.txt") == [tmp_path / "deep" / "x.txt"]
    both = write_report(found, ["html", "md"], tmp_path / "y.html", light=True)
    assert [path.name for path in both] == ["y.html", "y.md", PLOTLY_FILE]
    assert write_report(found, ["md"], tmp_path / "y.md"), "our own file is written anew"


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    precious = tmp_path / "thesis.md"
    precious.write_text("three years of work")
    with pytest.raises(StorageError, match="not written by autotune"):
        write_report(findings(FEW), ["md"], precious)
    assert precious.read_text() == "three years of work"


def test_formats_are_checked() -> None:
    assert parse_formats("html, md,html") == ["html", "md"]
    for text in ("pdf", "", "html;md"):
        with pytest.raises(BadValue) as caught:
            parse_formats(text)
        assert "html, md, svg, png" in (caught.value.help or "")


def test_picture_of_nothing_and_png_without_kaleido_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadValue, match="no trade-off to draw"):
        FORMATS["svg"](findings(CRASHES))
    monkeypatch.setattr("autotune.report.files.find_spec", lambda name: None)
    with pytest.raises(MissingLibrary) as caught:
        FORMATS["png"](findings(FEW))
    assert "autotune-memory[png]" in (caught.value.help or "")
    assert "--format svg" in (caught.value.help or "")
