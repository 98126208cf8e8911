"""The built-in corpora: real English text that every Python carries, so nothing is downloaded.

`library_topics` is the reference text behind `help("for")`; `library_docstrings` are documented
names of standard packages, to be told apart by package. Docstrings are read from the source files
and not from imported modules, whose contents depend on what else was imported. Both corpora differ
between Python versions, so runs record a digest of what they trained on.
"""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from autotune.core.errors import DataError

PACKAGES = (
    "asyncio",
    "email",
    "importlib",
    "logging",
    "tkinter",
    "xml",
    "unittest",
    "multiprocessing",
    "http",
    "urllib",
    "concurrent",
    "xmlrpc",
)
"""Packages to take docstrings from, in order of preference: slim Pythons lack some of them."""

MIN_WORDS = 6
"""Shorter docstrings say too little to be told apart."""


def library_topics() -> list[str]:
    """Return the topics of Python's `help()`, in alphabetical order."""
    from pydoc_data import topics

    return [topics.topics[name] for name in sorted(topics.topics)]


def library_docstrings(
    classes: int = 6, per_class: int = 200, *, root: Path | None = None
) -> tuple[list[str], list[str]]:
    """Return documented names, `"Queue.get: Remove and return an item …"`, and their packages.

    A docstring that occurs more than once, in one package or in several, is left out but for its
    first occurrence, so that no docstring is in both parts of a split.

    Args:
        classes: How many packages, at most.
        per_class: Most texts of a package, so that no package outweighs the others.
        root: Folder of the standard library; by default that of this Python.

    Returns:
        Texts and labels, in a fixed order.

    Raises:
        DataError: If this Python has no sources to read.
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    present = [name for name in PACKAGES if (root / name).is_dir()][:classes]
    seen: set[str] = set()
    texts: list[str] = []
    labels: list[str] = []
    for package in sorted(present):
        found: list[str] = []
        for name, docstring in _docstrings(root / package):
            if docstring not in seen:
                seen.add(docstring)
                found.append(f"{name}: {docstring}")
        # Spread evenly over the package, so that all of its modules take part.
        places = np.linspace(0, len(found) - 1, min(per_class, len(found))).round().astype(int)
        texts += [found[place] for place in places]
        labels += [package] * len(places)
    if len(set(labels)) < 2:
        raise DataError(
            "this Python has no sources of its standard library to take docstrings from",
            where=str(root),
            help="bring your own texts: --data FILE --text-column NAME --label-column NAME",
        )
    return texts, labels


def _docstrings(package: Path) -> Iterator[tuple[str, str]]:
    """Yield qualified names of a package's classes and functions with their docstrings."""
    for path in sorted(package.rglob("*.py")):
        if not any("test" in part for part in path.relative_to(package).parts):
            yield from _documented(ast.parse(path.read_bytes()), "")


def _documented(parent: ast.AST, prefix: str) -> Iterator[tuple[str, str]]:
    for node in ast.iter_child_nodes(parent):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            words = (ast.get_docstring(node) or "").split()
            if len(words) >= MIN_WORDS:
                yield prefix + node.name, " ".join(words)
            yield from _documented(node, f"{prefix}{node.name}.")
