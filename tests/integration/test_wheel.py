"""The wheel, built and used from another directory: everything that is promised is inside."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILT = ("build", "dist", ".venv", ".git", "results")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a wheel from a copy of the sources and unpack it where nothing else is."""
    import shutil

    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "sources"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*BUILT, "*.egg-info", "__pycache__"))
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
         "--wheel-dir", str(folder), str(copy)],
        check=True, capture_output=True, timeout=240,
    )  # fmt: skip
    (wheel,) = folder.glob("autotune_memory-*.whl")
    target = folder / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


def python(installed: Path, folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-P", *arguments],
        cwd=folder, capture_output=True, text=True, timeout=120, check=False,
        env={"PYTHONPATH": str(installed), "PATH": "/usr/bin:/bin", "HOME": str(folder)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_only_one_name_goes_into_site_packages(installed: Path) -> None:
    names = {p.name for p in installed.iterdir() if not p.name.endswith(".dist-info")}
    assert names == {"autotune"}
    assert (installed / "autotune" / "py.typed").exists()


def test_imports_come_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    program = (
        "import autotune, autotune.objectives.causal_lm as c; print(autotune.__file__, c.__file__)"
    )
    for path in python(installed, tmp_path, "-c", program).split():
        assert path.startswith(str(installed))


def test_shipped_spaces_and_commands_work(installed: Path, tmp_path: Path) -> None:
    listing = python(installed, tmp_path, "-m", "autotune", "spaces", "ls")
    for path in (ROOT / "search_spaces").glob("*.yaml"):
        assert path.stem in listing
    assert "default" in python(installed, tmp_path, "-m", "autotune", "spaces", "show", "default")


def test_a_study_database_can_be_made(installed: Path, tmp_path: Path) -> None:
    program = (
        "from autotune.storage.store import Store; "
        "print(Store.open('sqlite:///' + 'study.db').runs())"
    )
    assert python(installed, tmp_path, "-c", program).strip() in ("[]", "()")
