"""The command line: one file per command, imported when called.

`autotune --help` imports none of them: commands are registered by import path, and their one-line
helps stand here. Errors and exit statuses are the business of `autotune/__main__.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cyclopts import App

from autotune.cli.settings import read_settings

if TYPE_CHECKING:
    from rich.console import Console

COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("autotune.cli.run:run", "Search for the best configurations under a memory budget."),
    "resume": ("autotune.cli.resume:resume", "Continue a run where it stopped, or search on."),
    "attach": ("autotune.cli.attach:attach", "Follow a run that another process drives."),
    "stop": ("autotune.cli.stop:stop", "End a run that another process drives, safely."),
    "estimate": ("autotune.cli.estimate:estimate", "Predict the memory of one configuration."),
    "plan": ("autotune.cli.plan:plan", "Say which layouts fit some devices, fastest first."),
    "front": ("autotune.cli.front:front", "Show the trade-off between score and memory."),
    "show": ("autotune.cli.show:show", "Show a run, one trial, or what failed and why."),
    "compare": ("autotune.cli.compare:compare", "Set two trials or two runs side by side."),
    "report": ("autotune.cli.report:report", "Write the whole story of a run as one file."),
    "replay": ("autotune.cli.replay:replay", "Run a trial again; do its numbers hold?"),
    "export": ("autotune.cli.export:export", "Turn a trial into something that runs elsewhere."),
    "query": ("autotune.cli.query:query", "Ask the study database in SQL, read-only."),
    "dashboard": ("autotune.cli.dashboard:dashboard", "Serve Optuna Dashboard on a run."),
    "db": ("autotune.cli.db:app", "Show the version of a study database, or upgrade it."),
    "spaces": ("autotune.cli.spaces:app", "List, show, check and copy search spaces and knobs."),
    "knobs": ("autotune.cli.knobs:app", "Measure what every knob does on this machine."),
    "doctor": ("autotune.cli.doctor:doctor", "Check this machine: device, libraries, disk."),
    "guide": ("autotune.cli.guide:guide", "Show a page of the guide, or list them."),
}
"""Import path and one-line help by command, in the order in which they are shown."""

_EPILOGUE = """Start with `autotune doctor`, then `autotune run --budget 16GB`.

RUN is the name of a run, its folder, or nothing for the latest; RUN/17 is a trial of it.
Settings may also stand in autotune.toml, or in pyproject.toml under [tool.autotune]."""


def make_app(console: Console | None = None) -> App:
    """Return the command line.

    Args:
        console: Where helps are printed; by default the terminal.
    """
    app = App(
        name="autotune",
        help="Of all the ways to train this model, which fit my memory, and what do they cost?",
        help_epilogue=_EPILOGUE,
        help_format="plaintext",
        version=_version,
        version_flags=["--version"],
        config=read_settings,
        console=console,
        suppress_keyboard_interrupt=False,
    )
    for order, (name, (path, text)) in enumerate(COMMANDS.items()):
        app.command(path, name=name, help=text, sort_key=order)
    app.register_install_completion_command(
        help="Install completion for bash, zsh or fish, then exit.", sort_key=100
    )
    return app


def _version() -> str:
    from importlib.metadata import version

    return f"autotune {version('autotune-memory')}"
