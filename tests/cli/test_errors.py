"""What is typed wrongly is answered with what to type instead, an exit status, and no traceback."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from syrupy.assertion import SnapshotAssertion

import autotune.cli.front
from autotune.__main__ import main
from tests.cli.conftest import Command, Said
from tests.cli.recorded import NAME

BAD_SPACE = """summary: mine
knobs:
  precision: [bf16, fp32]
  checkpoiting: [none, full]
"""
CATALOGUE: tuple[tuple[int, tuple[str, ...]], ...] = (
    (2, ("rnu",)),
    (2, ("front", "--wheer", "x")),
    (2, ("export", NAME, "0", "--to", "hf")),
    (2, ("run",)),
    (2, ("run", "--budget", "16")),
    (2, ("run", "--budget", "lots")),
    (2, ("run", "--budget", "99TB")),
    (2, ("run", "--budget", "1GB", "--trials", "many")),
    (2, ("run", "--budget", "1GB", "--time", "5")),
    (2, ("run", "--budget", "1GB", "--set", "precision")),
    (2, ("run", "--budget", "1GB", "--set", "precison=bf16")),
    (2, ("run", "--budget", "1GB", "--set", "precision=[fp8]")),
    (2, ("run", "--budget", "1GB", "--space", "defualt")),
    (2, ("run", "--budget", "1GB", "--space", "bad.yaml")),
    (2, ("run", "--budget", "1GB", "--space", "broken.yaml")),
    (2, ("run", "--budget", "1GB", "--sampler", "tpee")),
    (2, ("run", "--budget", "1GB", "--device", "tpu")),
    (2, ("run", "--budget", "1GB", "--name", "../up")),
    (1, ("run", "--budget", "1GB", "--name", NAME)),
    (2, ("resume", "bert")),
    (2, ("resume", NAME, "--trials", "+many")),
    (2, ("show", "bert-16bg")),
    (2, ("show", f"{NAME}/99")),
    (2, ("show", f"{NAME}/3", "--failed")),
    (2, ("front", "--where", "perplexity < 9")),
    (2, ("front", "--where", "accuracy >")),
    (2, ("front", "--where", "accuracy + 1")),
    (2, ("front", "--where", "accuracy > baseline")),
    (2, ("front", "--pick", "best")),
    (2, ("query",)),
    (2, ("query", "select nothing from trials")),
    (2, ("query", "drop table autotune_run")),
    (2, ("query", "select 1; select 2")),
    (2, ("query", "select 1", "--run", NAME, "--storage", "sqlite:///x.db")),
    (1, ("query", "select 1", "--storage", "sqlite:///none.db")),
    (2, ("spaces", "show", "loseless")),
    (2, ("spaces", "check", "bad.yaml")),
    (2, ("spaces", "check", "none.yaml")),
    (2, ("spaces", "knobs", "checkpoiting")),
    (1, ("spaces", "cp", "smoke", "no/such/folder.yaml")),
)  # fmt: skip


@pytest.fixture
def files(recorded: Path) -> None:
    Path("bad.yaml").write_text(BAD_SPACE)
    Path("broken.yaml").write_text("knobs: [precision: {\n")


def check(said: Said, status: int) -> None:
    assert said.status == status
    assert said.out == ""
    assert said.err.startswith("error  ")
    assert "Traceback" not in said.err
    assert "\x1b" not in said.err


@pytest.mark.parametrize(
    ("status", "arguments"), CATALOGUE, ids=lambda a: " ".join(a) if isinstance(a, tuple) else ""
)
def test_error(
    status: int,
    arguments: tuple[str, ...],
    autotune_says: Command,
    files: None,
    snapshot: SnapshotAssertion,
) -> None:
    said = autotune_says(*arguments)
    check(said, status)
    assert "help   " in said.err
    assert said.err == snapshot


@pytest.mark.parametrize("arguments", [("rnu",), ("run",), ("show", "bert-16bg")], ids=" ".join)
def test_error_is_a_document_too(
    arguments: tuple[str, ...], autotune_says: Command, recorded: Path
) -> None:
    said = autotune_says(*arguments, "--json")
    assert said.status == 2
    assert said.err == ""
    assert said.document["schema"] == 1
    assert set(said.document["error"]) == {"error", "message", "where", "context", "help"}


def test_database_of_a_newer_version_is_left_alone(autotune_says: Command, recorded: Path) -> None:
    database = recorded / "study.db"
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("UPDATE autotune_alembic_version SET version_num = '9999'")
    shutil.copy(database, "copy.db")
    said = autotune_says("show", NAME)
    check(said, 1)
    assert "newer" in said.err
    assert database.read_bytes() == Path("copy.db").read_bytes()


def test_folder_that_cannot_be_written_is_said(
    autotune_says: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("file").write_text("in the way")
    said = autotune_says("run", "--budget", "1GB", "--results", "file/below")
    check(said, 1)
    assert "--results DIR" in said.err


def test_unexpected_error_is_one_line_and_a_log(
    autotune_says: Command, recorded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("a bug of [bold]ours[/bold]")

    monkeypatch.setattr(autotune.cli.front, "matching", fail)
    monkeypatch.setattr("tempfile.tempdir", str(Path.cwd()))
    said = autotune_says("front")
    check(said, 1)
    assert "unexpected RuntimeError: a bug of [bold]ours[/bold]" in said.err
    (log,) = Path.cwd().glob("autotune-*.log")
    assert log.name in said.err
    assert "Traceback" in log.read_text()
    assert 'raise RuntimeError("a bug' in autotune_says("front", "-v").err


def test_ctrl_c_has_its_own_status(
    autotune_says: Command, recorded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(autotune.cli.front, "matching", interrupt)
    said = autotune_says("front")
    assert (said.status, said.out, said.err) == (130, "", "interrupted\n")


def test_reader_that_goes_away_is_no_error(
    recorded: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with (tmp_path / "out").open("w") as stream:

        class Closed:
            encoding = "utf-8"

            def write(self, text: str) -> int:
                raise BrokenPipeError

            def flush(self) -> None:
                raise BrokenPipeError

            def isatty(self) -> bool:
                return False

            def fileno(self) -> int:
                return stream.fileno()

        monkeypatch.setattr("sys.stdout", Closed())
        assert main(["front"]) == 1


@pytest.mark.parametrize("results", ["s3://bucket/runs", "gs:/bucket", "https://host/runs"])
@pytest.mark.parametrize("command", ["front", "run --budget 1GB --space smoke --dry-run"])
def test_results_at_a_url_are_refused(
    autotune_says: Command, command: str, results: str, tmp_path: Path
) -> None:
    said = autotune_says(*command.split(), "--results", results)
    assert said.status == 2
    assert "is a URL" in said.err
    assert "--results DIR" in said.err
