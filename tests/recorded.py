"""What documents show of recorded runs, computed. `python -m tests.recorded` writes it into README.

A block between `<!-- recorded: NAME -->` and `<!-- end -->` is never typed by hand: it is what the
program prints of a file under `results/reference/`. `tests/unit/test_readme.py` compares.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from autotune.__main__ import main

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "results" / "reference"
RUN = "cpu-default"
BLOCK = re.compile(r"<!-- recorded: (.+?) -->\n(.*?)<!-- end -->", re.DOTALL)


def show_run() -> str:
    """Return the final screen of the recorded default run, 100 columns wide."""
    printed = io.StringIO()
    surroundings = {"COLUMNS": "100", "AUTOTUNE_RESULTS": str(REFERENCE)}
    with mock.patch.dict(os.environ, surroundings), contextlib.redirect_stdout(printed):
        status = main(["show", RUN])
    if status != 0:
        raise SystemExit(f"autotune show {RUN} exited with {status}")
    lines = [line.rstrip() for line in printed.getvalue().splitlines()]
    text = "\n".join(lines).strip("\n")
    return f"```text\n{text}\n```\n"


def overhead_sentence() -> str:
    """Say what isolation and measurement cost, from the recorded benchmark."""
    document = json.loads((REFERENCE / "overhead.json").read_text())
    ways = document["ways"]
    ours, fresh = ways["autotune"]["added_seconds"], ways["fresh process"]["added_seconds"]
    return (
        f"Isolation and measurement add {ours:.2f} s to a trial; plain Optuna with a fresh process "
        f"per trial adds {fresh:.1f} s, {document['fresh_over_autotune']:.0f} times as much "
        "(`make benchmark`, recorded in `results/reference/overhead.json`).\n"
    )


BLOCKS: dict[str, Callable[[], str]] = {
    f"autotune show {RUN}": show_run,
    "overhead": overhead_sentence,
}


def refresh(text: str) -> str:
    """Return a document with every recorded block computed anew."""
    return BLOCK.sub(
        lambda block: f"<!-- recorded: {block[1]} -->\n{BLOCKS[block[1]]()}<!-- end -->", text
    )


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(refresh(readme.read_text()))
