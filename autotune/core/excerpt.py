"""Lines of a file around a mistake, as an error shows them.

::

    12 │   optimizer: [adamw, sgd]
  ▸ 13 │   checkpoiting: [none, full]
       │   ^^^^^^^^^^^^
"""

from __future__ import annotations

import re

_TOKEN = re.compile(r"\"[^\"]*\"|'[^']*'|[^\s,\]}:#]+")


def excerpt(text: str, line: int, column: int, *, before: int = 2) -> tuple[str, ...]:
    """Return the line of a mistake, lines before it, and an underline of the word at `column`.

    Args:
        text: The whole file.
        line: Line of the mistake, from 0.
        column: Its column, from 0.
        before: Lines to show before it, at most.
    """
    lines = text.splitlines() or [""]
    line = min(max(line, 0), len(lines) - 1)
    column = min(max(column, 0), len(lines[line]))
    token = _TOKEN.match(lines[line], column)
    width = len(token[0]) if token else 1
    digits = len(str(line + 1))
    shown = []
    for number in range(max(0, line - before), line + 1):
        mark = "▸" if number == line else " "
        shown.append(f"{mark} {number + 1:>{digits}} │ {lines[number]}".rstrip())
    return (*shown, f"  {'':>{digits}} │ {' ' * column}{'^' * width}")
