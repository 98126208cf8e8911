"""`autotune doctor`: is this machine ready?"""

from __future__ import annotations

from typing import Annotated

from rich.console import RenderableType
from rich.text import Text

from autotune.cli.checks import Check, Verdict, machine_checks
from autotune.cli.options import Common, Flag
from autotune.report.document import SCHEMA
from autotune.report.text import Column, Listing, make_table

PROBLEM_FOUND = 4
_MARKS = {Verdict.GOOD: "✓", Verdict.WARNING: "!", Verdict.PROBLEM: "✗"}
_COLOURS = {Verdict.GOOD: "green", Verdict.WARNING: "yellow", Verdict.PROBLEM: "red"}


def doctor(
    *,
    fast: Annotated[bool, Flag] = False,
    common: Common = Common(),  # noqa: B008  (frozen; cyclopts fills in what was typed)
) -> int:
    """Check this machine: device, libraries, disk.

    Args:
        fast: Leave out what takes seconds: starting torch, measuring a process on each GPU.
        common: Options of every command.

    Returns:
        The exit status: 4 if there is a problem.
    """
    checks = machine_checks(common.results, fast=fast)
    problems = sum(check.verdict is Verdict.PROBLEM for check in checks)
    warnings = sum(check.verdict is Verdict.WARNING for check in checks)
    document = {
        "schema": SCHEMA,
        "checks": [{"check": c.name, "verdict": c.verdict.value, "found": c.found} for c in checks],
        "problems": problems,
        "warnings": warnings,
    }
    common.show(document, *_screen(checks, problems, warnings))
    return PROBLEM_FOUND if problems else 0


def _screen(checks: list[Check], problems: int, warnings: int) -> list[RenderableType]:
    rows = [
        (Text(_MARKS[c.verdict], style=_COLOURS[c.verdict]), Text(c.name), Text(c.found))
        for c in checks
    ]
    table = make_table((Column(""), Column("check"), Column("found", folds=True)), rows)
    verdict = f"{_count(problems, 'problem')}, {_count(warnings, 'warning')}."
    if problems:
        return [table, Text(), Text(f"{verdict} Exit status {PROBLEM_FOUND}.")]
    lines = [("autotune run --budget 1GB --space smoke", "a first search, about a minute")]
    return [table, Text(), Text(verdict), Text(), Listing("Next", lines)]


def _count(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'s' * (number != 1)}"
