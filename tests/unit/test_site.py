"""The guide as a site: every page is in it, in the order of `autotune guide`, and it builds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from autotune.cli.guide import pages

ROOT = Path(__file__).resolve().parents[2]


def test_the_site_has_the_pages_of_the_guide_in_its_order() -> None:
    settings = YAML(typ="safe").load(ROOT / "mkdocs.yml")
    assert settings["nav"] == [f"{topic}.md" for topic in pages()]


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    for needed in ("mkdocs", "material", "mkdocs_redirects"):
        pytest.importorskip(needed, reason="the site needs autotune-memory[docs]")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for topic, page in pages().items():
        assert page["title"] in (tmp_path / topic / "index.html").read_text()
    assert "first-search/" in (tmp_path / "index.html").read_text()
