"""Every command against the recorded run, as it looks at 80 columns in a pipe."""

from __future__ import annotations

from pathlib import Path

import pytest
from syrupy.assertion import SnapshotAssertion

from tests.cli.conftest import Command
from tests.cli.recorded import NAME, record_run

SCREENS: tuple[tuple[str, ...], ...] = (
    ("show",),
    ("show", f"{NAME}/0"),
    ("show", f"{NAME}/3"),
    ("show", f"{NAME}/7"),
    ("show", NAME, "--failed"),
    ("front",),
    ("front", NAME, "--all"),
    ("front", "--all", "--where", "peak_gib < 9 and accuracy >= 0.98 * best"),
    ("front", "--where", "lora.rank == 99"),
    ("front", "--pick", "memory"),
    ("query", "select trial, status, score, peak_gib, differs from trials"),
    ("query", "--format", "csv", "select trial, score, stderr from front order by trial"),
    ("query", "--schema"),
    ("spaces", "ls"),
    ("spaces", "show", "smoke"),
    ("spaces", "knobs"),
    ("spaces", "knobs", "lora.rank"),
    ("spaces", "objectives"),
    ("spaces", "schema"),
)
DOCUMENTS: tuple[tuple[str, ...], ...] = (
    ("show",),
    ("show", f"{NAME}/3"),
    ("show", "--failed"),
    ("front",),
    ("query", "select trial, score from front"),
    ("spaces", "ls"),
    ("spaces", "show", "smoke"),
    ("spaces", "knobs"),
    ("spaces", "objectives"),
    ("spaces", "schema"),
    ("doctor", "--fast"),
)
HELPS: tuple[tuple[str, ...], ...] = (
    (),
    ("run",),
    ("resume",),
    ("front",),
    ("show",),
    ("compare",),
    ("query",),
    ("report",),
    ("export",),
    ("replay",),
    ("estimate",),
    ("guide",),
    ("knobs", "check"),
    ("doctor",),
    ("spaces",),
    ("spaces", "ls"),
    ("spaces", "show"),
    ("spaces", "check"),
    ("spaces", "cp"),
    ("spaces", "knobs"),
    ("spaces", "objectives"),
    ("spaces", "schema"),
)


@pytest.mark.parametrize("arguments", SCREENS, ids=" ".join)
def test_screen(
    arguments: tuple[str, ...], autotune_says: Command, recorded: Path, snapshot: SnapshotAssertion
) -> None:
    said = autotune_says(*arguments)
    assert (said.status, said.err) == (0, "")
    assert "\x1b" not in said.out
    assert said.out == snapshot


@pytest.mark.parametrize("arguments", SCREENS, ids=" ".join)
def test_no_line_is_wider_than_the_screen(
    arguments: tuple[str, ...], autotune_says: Command, recorded: Path
) -> None:
    said = autotune_says(*arguments)
    unbreakable = "--format" in arguments or arguments == ("spaces", "schema")
    assert unbreakable or max(map(len, said.out.splitlines())) <= 80


def test_front_shows_bars_where_there_is_room(
    autotune_says: Command,
    recorded: Path,
    monkeypatch: pytest.MonkeyPatch,
    snapshot: SnapshotAssertion,
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    said = autotune_says("front")
    assert "█" in said.out
    assert said.out == snapshot


@pytest.mark.parametrize("arguments", DOCUMENTS, ids=" ".join)
def test_document_is_one_json_object(
    arguments: tuple[str, ...], autotune_says: Command, recorded: Path
) -> None:
    said = autotune_says(*arguments, "--json")
    assert said.err == ""
    document = said.document
    assert "$schema" in document or document["schema"] == 1


@pytest.mark.parametrize("arguments", DOCUMENTS[:5], ids=" ".join)
def test_document_of_a_run(
    arguments: tuple[str, ...], autotune_says: Command, recorded: Path, snapshot: SnapshotAssertion
) -> None:
    assert autotune_says(*arguments, "--json").out == snapshot


@pytest.mark.parametrize("command", HELPS, ids=lambda words: " ".join(words) or "autotune")
def test_help_is_frozen(
    command: tuple[str, ...], autotune_says: Command, snapshot: SnapshotAssertion
) -> None:
    said = autotune_says(*command, "--help")
    assert (said.status, said.err) == (0, "")
    assert said.out == snapshot


def test_options_of_every_command_may_stand_before_the_verb(
    autotune_says: Command, recorded: Path
) -> None:
    assert autotune_says("--json", "front").document == autotune_says("front", "--json").document
    record_run(Path("elsewhere"), "other")
    said = autotune_says("--results", "elsewhere", "show")
    assert "autotune front other --results elsewhere" in said.out


def test_version(autotune_says: Command) -> None:
    said = autotune_says("--version")
    assert said.out.startswith("autotune ")
    assert said.out.split()[1][0].isdigit()


def test_query_json_has_the_same_rows_as_csv(autotune_says: Command, recorded: Path) -> None:
    sql = "select trial, differs from front order by trial"
    rows = autotune_says("query", sql, "--json").document["rows"]
    lines = autotune_says("query", sql, "--format", "csv").out.splitlines()[1:]
    assert [str(row[0]) for row in rows] == [line.partition(",")[0] for line in lines]
    assert autotune_says("query", sql, "--format", "json").document["rows"] == rows


def test_no_run_yet_says_how_to_start(autotune_says: Command) -> None:
    said = autotune_says("front")
    assert said.status == 1
    assert "autotune run --budget 16GB" in said.err


def test_spaces_check_and_cp(autotune_says: Command) -> None:
    said = autotune_says("spaces", "cp", "smoke", "mine.yaml")
    assert said.status == 0
    assert "autotune run --budget 16GB --space mine.yaml" in said.out
    assert "8 combinations" in autotune_says("spaces", "check", "mine.yaml").out
    before = Path("mine.yaml").read_text()
    again = autotune_says("spaces", "cp", "default", "mine.yaml")
    assert again.status == 1
    assert "ever overwritten" in again.err
    assert Path("mine.yaml").read_text() == before
    Path("folder").mkdir()
    autotune_says("spaces", "cp", "smoke", "folder")
    assert Path("folder/smoke.yaml").read_text() == before
