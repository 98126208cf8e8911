"""The built-in corpora: real English text that every Python carries, so nothing is downloaded.

`library_topics` is the reference text behind `help("for")`; `library_docstrings` are the docstrings
of standard packages, each labelled with its package. Docstrings are read from the source files and
not from imported modules, whose contents depend on what else was imported. Both differ between
Python versions, so runs record a digest of what they trained on.
"""

from __future__ import annotations

import ast
import sysconfig
from collections import Counter
from pathlib import Path

import numpy as np

from autotune.core.errors import DataError

PACKAGES = (
    "asyncio",
    "concurrent",
    "distutils",
    "email",
    "http",
    "idlelib",
    "importlib",
    "logging",
    "multiprocessing",
    "tkinter",
    "unittest",
    "urllib",
    "wsgiref",
    "xml",
    "xmlrpc",
)
"""Packages that are looked into; some are missing from newer or slimmer Pythons."""

MIN_WORDS = 6
"""Shorter docstrings say too little to be told apart."""


def library_topics() -> str:
    """Return the topics of Python's `help()` as one text, in alphabetical order of the topics."""
    from pydoc_data import topics

    return "\n\n".join(topics.topics[name] for name in sorted(topics.topics))


def library_docstrings(
    classes: int, per_class: int, *, root: Path | None = None
) -> tuple[list[str], list[str]]:
    """Return docstrings and the package of each.

    A docstring that occurs more than once, in one package or in several, is left out but for its
    first occurrence, so that no text is in both parts of a split.

    Args:
        classes: How many packages: those with the most docstrings.
        per_class: Most docstrings of a package, so that no package outweighs the others.
        root: Folder of the standard library; by default that of this Python.

    Returns:
        Texts and labels, in a fixed order.

    Raises:
        DataError: If this Python has no sources to read.
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    owner: dict[str, str] = {}
    for package in PACKAGES:
        for text in _docstrings(root / package):
            owner.setdefault(text, package)
    ranked = [name for name, _ in Counter(owner.values()).most_common(classes)]
    if len(ranked) < 2:
        raise DataError(
            "this Python has no sources of its standard library to take docstrings from",
            where=str(root),
            help="bring your own texts: --data FILE --text-column NAME --label-column NAME",
        )
    pairs = [pair for name in sorted(ranked) for pair in _sample(owner, name, per_class)]
    return [text for text, _ in pairs], [label for _, label in pairs]


def _sample(owner: dict[str, str], package: str, most: int) -> list[tuple[str, str]]:
    """Draw docstrings of a package; evenly spread, so that all of its modules take part."""
    texts = [text for text, name in owner.items() if name == package]
    places = np.linspace(0, len(texts) - 1, min(most, len(texts))).round().astype(int)
    return [(texts[place], package) for place in places]


def _docstrings(package: Path) -> list[str]:
    """Return the docstrings of a package's modules, classes and functions, tests left out."""
    found = []
    for path in sorted(package.rglob("*.py")):
        if any("test" in part for part in path.relative_to(package).parts):
            continue
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = " ".join((ast.get_docstring(node) or "").split())
                if len(text.split()) >= MIN_WORDS:
                    found.append(text)
    return found
