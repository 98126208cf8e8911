"""The house rules that no other tool checks: sizes, light imports, one home per heavy library."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(
    path
    for folder in ("autotune", "objectives", "tests")
    for path in (ROOT / folder).rglob("*.py")
    if "__pycache__" not in path.parts
)
PRODUCT = [path for path in SOURCES if "tests" not in path.relative_to(ROOT).parts]
HOMES = {
    "torch": {"trial", "knobs", "memory", "objectives"},
    "transformers": {"trial", "knobs", "memory", "objectives"},
    "optuna": {"search"},
    "ray": {"runners"},
    "sqlalchemy": {"storage"},
    "alembic": {"storage"},
    "plotly": {"report"},
    "jinja2": {"report"},
    "cyclopts": {"cli", "__main__.py"},
    "rich": {"cli", "report"},
}
LIGHT_MODULES = (
    "autotune",
    "autotune.core.space",
    "autotune.knobs",
    "autotune.trial.spec",
    "autotune.trial.objective",
    "autotune.memory.rehearsal_worker",
    "autotune.runners.devices",
    "autotune.search.screen",
    "autotune.storage.query",
    "autotune.report.text",
    "autotune.cli",
)


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=ids)
def test_file_is_at_most_400_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.parametrize("path", PRODUCT, ids=ids)
def test_module_opens_by_saying_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_median_file_is_short() -> None:
    lengths = sorted(len(path.read_text().splitlines()) for path in PRODUCT)
    assert lengths[len(lengths) // 2] <= 160


@pytest.mark.parametrize("path", PRODUCT, ids=ids)
def test_heavy_libraries_have_one_home(path: Path) -> None:
    relative = path.relative_to(ROOT)
    room = relative.parts[1] if relative.parts[0] == "autotune" else relative.parts[0]
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        for name in names:
            library = name.partition(".")[0]
            if library in HOMES:
                assert room in HOMES[library], f"{library} is imported at line {node.lineno}"


@pytest.mark.parametrize("path", SOURCES, ids=ids)
def test_ignores_say_what_and_why(path: Path) -> None:
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if re.search(r"#\s*type:\s*ignore", line) and path.name != "test_house.py":
            assert re.search(r"type: ignore\[[\w-]+(, ?[\w-]+)*\]\s+# \w+", line), f"line {number}"


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_screens_need_no_heavy_library(module: str) -> None:
    program = (
        f"import sys, {module}; "
        "heavy = {'torch', 'transformers', 'optuna', 'ray', 'peft'} & set(sys.modules); "
        "sys.exit(' '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, f"{module} imports {done.stderr.strip()}"


def test_top_level_holds_what_the_design_names() -> None:
    folders = {
        path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")
    }
    built = {"build", "dist"} | {name for name in folders if name.endswith(".egg-info")}
    known = {"autotune", "search_spaces", "objectives", "tests", "results", "__pycache__"}
    assert folders - built <= known
