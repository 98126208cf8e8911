"""Every command line in the guide does what its page says it does."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

import autotune.cli.dry_run
import autotune.repeat
import autotune.tuner
from autotune.__main__ import main
from autotune.cli import make_app
from autotune.cli.guide import ORDER, pages
from autotune.plan import Settings
from autotune.runners.replay import ReplayRunner
from autotune.storage.run import Run
from tests.recorded import REFERENCE, RUN

PAGES = pages()
OURS = (
    "first-search",
    "memory",
    "write-a-space",
    "write-an-objective",
    "write-a-knob",
    "footguns",
    "export-and-train",
    "queries",
    "read-the-report",
    "method",
    "parallel",
)
PARSED_ONLY = ("estimate", "plan")
"""Commands that train or rehearse for real, whatever the runner."""


def fenced(topic: str) -> list[str]:
    """The command lines of a page, in order."""
    blocks = re.findall(r"```bash\n(.*?)```", PAGES[topic]["text"], re.DOTALL)
    return [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines()]


def inline(topic: str) -> list[str]:
    """Command lines in the middle of a sentence."""
    text = re.sub(r"```.*?```", "", PAGES[topic]["text"], flags=re.DOTALL)
    return re.findall(r"`(autotune [^`]+)`", text)


@pytest.fixture
def replayed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let trials end as in the recorded run, which is also the latest run of the results."""
    recorded = Run.open(RUN, results=REFERENCE)

    def runner(settings: Settings) -> ReplayRunner:
        return ReplayRunner(recorded.spec.facts, recorded.records)

    for module in (autotune.tuner, autotune.cli.dry_run, autotune.repeat):
        monkeypatch.setattr(module, "local_runner", runner)
    results = tmp_path / "results"
    shutil.copytree(REFERENCE / RUN, results / RUN)
    monkeypatch.setenv("AUTOTUNE_RESULTS", str(results))
    monkeypatch.chdir(tmp_path)
    return results


@pytest.mark.parametrize("topic", [t for t in OURS if fenced(t) and t != "parallel"])
def test_commands_work(topic: str, replayed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in fenced(topic):
        program, *arguments = shlex.split(command)
        if program == "python":
            assert Path(arguments[0]).is_file(), command
        elif arguments[0] in PARSED_ONLY:
            make_app().parse_args(arguments, exit_on_error=False, print_error=False)
        else:
            fast = ["--fast"] if arguments == ["doctor"] else []
            status = main([*arguments, *fast])
            assert status in ((0, 4) if arguments[0] == "doctor" else (0,)), command
            assert capsys.readouterr().out, command


@pytest.mark.parametrize("topic", OURS)
def test_commands_in_sentences_can_be_typed(topic: str) -> None:
    for command in inline(topic):
        words = shlex.split(command)[1:]
        make_app().parse_args(words, exit_on_error=False, print_error=False)


@pytest.mark.parametrize("topic", OURS)
def test_files_that_are_named_are_there(topic: str) -> None:
    root = REFERENCE.parents[1]
    for path in re.findall(r"`((?:autotune|objectives|tests)/[\w/.]+)`", PAGES[topic]["text"]):
        assert (root / path).exists(), path


@pytest.mark.parametrize("topic", OURS)
def test_topics_that_are_named_are_there(topic: str) -> None:
    named = re.findall(r"autotune guide ([\w-]+)", PAGES[topic]["text"])
    assert set(named) <= set(PAGES)


def test_the_space_of_the_page_is_a_space(tmp_path: Path) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", PAGES["write-a-space"]["text"], re.DOTALL)
    (tmp_path / "mine.yaml").write_text(example)
    assert main(["spaces", "check", str(tmp_path / "mine.yaml"), "--quiet"]) == 0


def test_pages_come_in_their_order() -> None:
    known = [topic for topic in PAGES if topic in ORDER]
    assert known == sorted(known, key=ORDER.index)
    assert set(OURS) <= set(known)
