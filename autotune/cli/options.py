"""Options of every command, and what they decide: stdout is data, stderr is narration."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Group, Parameter
from rich.console import Console, RenderableType

from autotune.cli.settings import source_of
from autotune.report.document import plain
from autotune.report.text import make_console

EVERYWHERE = Group("Every command", sort_key=100)
Flag = Parameter(negative="", show_default=False)
"""A switch that is off unless it is given, without a `--no-…` beside it."""

RESULTS = Parameter(env_var="AUTOTUNE_RESULTS", metavar="DIR", group=EVERYWHERE)
STORAGE_VARIABLE = "AUTOTUNE_STORAGE"
"""Where a URL with a password belongs: the list of processes shows command lines to everybody."""

RunName = Annotated[str | None, Parameter(name="RUN", show_default=False)]
Storage = Annotated[
    str | None,
    Parameter(name="--storage", metavar="URL", env_var=STORAGE_VARIABLE, show_default=False),
]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Common:
    """Options of every command."""

    json: Annotated[bool, Parameter(group=EVERYWHERE), Flag] = False
    """Print one JSON document, and nothing else, on standard output."""

    quiet: Annotated[bool, Parameter(name=["--quiet", "-q"], group=EVERYWHERE), Flag] = False
    """Say nothing on the way: results and errors only."""

    verbose: Annotated[bool, Parameter(name=["--verbose", "-v"], group=EVERYWHERE), Flag] = False
    """Say more on the way, and show tracebacks of errors that are ours."""

    results: Annotated[
        Path, Parameter(env_var="AUTOTUNE_RESULTS", metavar="DIR", group=EVERYWHERE)
    ] = Path("results")
    """Folder that holds all runs."""

    no_color: Annotated[bool, Parameter(group=EVERYWHERE), Flag] = False
    """Write no escape codes: no colours, nothing redrawn. NO_COLOR in the environment does too."""

    @property
    def out(self) -> Console:
        """Where results go."""
        return make_console(sys.stdout, plain=self.no_color)

    @property
    def err(self) -> Console:
        """Where narration goes."""
        return make_console(sys.stderr, plain=self.no_color)

    def show(self, document: Mapping[str, object], *screen: RenderableType) -> None:
        """Print a result: the document with `--json`, else the screen."""
        if self.json:
            self.print_document(document)
        else:
            for part in screen:
                self.out.print(part)

    def print_document(self, document: Mapping[str, object]) -> None:
        """Print a document as JSON."""
        text = json.dumps(plain(document), ensure_ascii=False, indent=2, allow_nan=False)
        sys.stdout.write(f"{text}\n")

    def say(self, text: RenderableType) -> None:
        """Print narration, unless quiet."""
        if not self.quiet:
            self.err.print(text)

    def where(self, storage: str | None = None) -> str:
        """Return what has to be added to a command for it to find the same runs.

        A password is left out, so that it has to be typed again unless it comes from the
        environment or from a password file.
        """
        typed = source_of("--results") == "cli"
        found = f" --results {shlex.quote(str(self.results))}" if typed else ""
        if not storage or source_of("--storage") == "env":
            return found
        from autotune.storage.urls import masked

        return f"{found} --storage {shlex.quote(masked(storage))}"


def whole_number(name: str, value: int, least: int) -> int:
    """Return `value`.

    Raises:
        BadValue: If it is below `least`.
    """
    from autotune.core.errors import BadValue

    if value < least:
        raise BadValue(f"--{name} must be at least {least}, but got {value}")
    return value
