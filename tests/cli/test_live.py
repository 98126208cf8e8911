"""The live display, drawn on a recording console with a clock that stands still."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from syrupy.assertion import SnapshotAssertion

from autotune.core.budget import Budget
from autotune.core.observer import RunView
from autotune.core.pareto import front
from autotune.core.space import load_space
from autotune.knobs import BUILTIN
from autotune.report.lines import Lines
from autotune.report.live import LiveDisplay, header
from autotune.report.progress import Progress
from autotune.report.text import is_terminal, make_console
from autotune.trial.spec import Event
from tests.cli.recorded import DEVICE, METRIC, Clock, records, spec


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def view(clock: Clock) -> RunView:
    return RunView(
        spec=spec(),
        space=load_space("default", BUILTIN),
        legal_count=11232,
        folder=Path("results/bert-16gb"),
        budget=Budget.parse("16GB"),
        device=DEVICE,
        metric=METRIC,
        clock=clock,
    )


def play(display: Progress, clock: Clock, trials: int) -> None:
    """Let some trials end and one be half done."""
    display.started(view(clock))
    done = []
    for record in records()[: trials + 1]:
        display.trial_started(record)
        display.event(record, Event(trial=record.number, kind="phase", data={"phase": "steady"}))
        step = {"step": 40, "steps": 120, "loss": 1.23456}
        display.event(record, Event(trial=record.number, kind="step", data=step))
        if record.number == trials:
            return
        clock.now += 26
        done.append(record)
        members = front(done, METRIC)
        display.trial_ended(record, record in members, members)


def shown(display: LiveDisplay, width: int, height: int) -> str:
    console = Console(
        file=io.StringIO(), width=width, height=height, color_system=None, legacy_windows=False
    )
    display.console = console
    with console.capture() as captured:
        console.print(display.render())
    return captured.get()


@pytest.mark.parametrize(("width", "height"), [(100, 40), (80, 24), (80, 16)])
def test_display(width: int, height: int, snapshot: SnapshotAssertion) -> None:
    clock = Clock()
    display = LiveDisplay(Console(file=io.StringIO()), auto_refresh=False)
    play(display, clock, 6)
    text = shown(display, width, height)
    assert len(text.splitlines()) <= height
    assert max(map(len, text.splitlines())) <= width
    assert text == snapshot


def test_header(snapshot: SnapshotAssertion) -> None:
    console = Console(file=io.StringIO(), width=80, color_system=None)
    with console.capture() as captured:
        console.print(header(view(Clock())))
    assert captured.get() == snapshot


def test_at_most_eight_trials_are_listed() -> None:
    clock = Clock()
    display = LiveDisplay(Console(file=io.StringIO()), auto_refresh=False)
    display.started(view(clock))
    for record in records():
        display.trial_started(record)
    display.close()
    rows = [line for line in shown(display, 80, 60).splitlines() if " start " in line]
    assert len(rows) == 8


def test_terminal_shows_what_happened_and_is_left_clean() -> None:
    clock, terminal = Clock(), Terminal()
    display = LiveDisplay(
        Console(file=terminal, width=80, height=24, force_terminal=True), auto_refresh=False
    )
    play(display, clock, 9)
    display.note("a word [bold]from[/bold] the loop")
    display.ended("done")
    text = terminal.getvalue()
    assert "4  accuracy 0.903 ±.012, 4.40 GiB, joined the front" in text
    assert "0  out of memory in first, step 0, 20.50 GiB needed" in text
    assert "\x1b[?25l" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l"), "the cursor stays hidden"


def test_terminal_takes_words_of_users_literally() -> None:
    clock, terminal = Clock(), Terminal()
    console = make_console(terminal, width=80)
    display = LiveDisplay(console, auto_refresh=False)
    play(display, clock, 8)
    display.close()
    assert "no [bold]markup[/bold] here" in terminal.getvalue()
    assert "reviews.csv [2 000 texts]" in terminal.getvalue()


@pytest.mark.parametrize(
    ("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb"), ("TERM", "unknown")]
)
def test_no_escape_codes_where_they_are_not_wanted(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    terminal = Terminal()
    assert is_terminal(terminal)
    make_console(terminal).print("word", style="bold red")
    assert "\x1b" in terminal.getvalue()
    monkeypatch.setenv(name, value)
    plain = Terminal()
    assert not is_terminal(plain)
    make_console(plain).print("word", style="bold red")
    assert plain.getvalue() == "word\n"


def test_lines_for_every_way_to_end(snapshot: SnapshotAssertion) -> None:
    clock, file = Clock(), io.StringIO()
    lines = Lines(file)
    play(lines, clock, 9)
    lines.note("said on the way")
    lines.ended("done")
    assert "\x1b" not in file.getvalue()
    assert file.getvalue() == snapshot
