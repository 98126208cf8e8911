"""Starting is quick: no command is imported for a help, and nothing heavy for most commands."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.recorded import record_run

HEAVY = ("torch", "transformers", "optuna", "peft", "datasets", "moocore", "plotly", "jinja2")
PROGRAM = """
import sys
from autotune.__main__ import main
status = main(sys.argv[2:])
found = [name for name in sys.argv[1].split(",") if name in sys.modules]
sys.exit(f"imports {found}" if found else status)
"""


def start(heavy: tuple[str, ...], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, ",".join(heavy), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        # a runner of an earlier test may have told this process's children what to import early
        env={name: value for name, value in os.environ.items() if name != "AUTOTUNE_WARM"},
    )


def test_help_imports_no_command_and_nothing_heavy() -> None:
    done = start((*HEAVY, "sqlalchemy", "autotune.cli.run", "autotune.knobs"), "--help")
    assert done.returncode == 0, done.stderr
    assert "autotune" in done.stdout


def test_help_is_there_at_once() -> None:
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        assert start((), "--help").returncode == 0
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 1.5, "0.25 s on an idle machine"


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "--help"),
        ("front",),
        ("show",),
        ("query", "select 1"),
        ("spaces", "ls"),
        ("spaces", "show", "default"),
        ("spaces", "objectives"),
        ("doctor", "--fast"),
    ],
    ids=" ".join,
)
def test_command_imports_nothing_heavy(arguments: tuple[str, ...]) -> None:
    record_run(Path("results"))
    done = start(HEAVY, *arguments)
    assert done.returncode == 0, done.stderr


def test_module_runs_and_a_closed_pipe_is_quiet() -> None:
    record_run(Path("results"))
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "autotune", "query", "--schema"],
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")
