"""The built-in corpora: real, the same every time, and without doubles."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from autotune.objectives.corpora import MIN_WORDS, library_docstrings, library_topics

from autotune.core.errors import DataError


def library(root: Path, **packages: str) -> Path:
    for name, source in packages.items():
        (root / name / "tests").mkdir(parents=True)
        (root / name / "__init__.py").write_text(source)
        (root / name / "tests" / "one.py").write_text(source.replace("Return", "Test"))
    return root


def documented(*texts: str) -> str:
    functions = (f"def f{i}():\n    '''{text}'''\n" for i, text in enumerate(texts))
    return "\n".join(functions)


def test_topics_are_long_english_texts() -> None:
    topics = library_topics()
    assert sum(map(len, topics)) > 300_000
    assert len(topics) > 50
    assert "statement" in "".join(topics)
    assert topics == library_topics()


def test_docstrings_are_labelled_with_their_package() -> None:
    texts, labels = library_docstrings()
    counts = Counter(labels)
    assert len(texts) == len(labels) > 800
    assert len(counts) == 6
    assert max(counts.values()) <= 200
    assert len(set(texts)) == len(texts)
    assert (texts, labels) == library_docstrings()


def test_names_stand_before_docstrings_and_short_ones_are_left_out(tmp_path: Path) -> None:
    long, short = "Return what was put in first of all.", "Return it."
    assert len(short.split()) < MIN_WORDS
    source = (
        f"class Box:\n    def get(self):\n        '''{long}'''\n    def put(self): '''{short}'''\n"
    )
    other = documented("Return the message as bytes on the wire.")
    texts, labels = library_docstrings(root=library(tmp_path, asyncio=source, email=other))
    assert texts == [f"Box.get: {long}", "f0: Return the message as bytes on the wire."]
    assert labels == ["asyncio", "email"]


def test_a_docstring_that_occurs_twice_is_kept_once(tmp_path: Path) -> None:
    same = "Return the same thing in two places."
    root = library(
        tmp_path,
        asyncio=documented(same, "Return something else, and only here."),
        email=documented(same, "Return yet another thing, and only here."),
    )
    texts, labels = library_docstrings(root=root)
    assert sum(same in text for text in texts) == 1
    assert Counter(labels) == {"asyncio": 2, "email": 1}


def test_no_package_outweighs_the_others(tmp_path: Path) -> None:
    many = documented(*(f"Return number {i} of very many things." for i in range(30)))
    few = documented("Return one of the few things here.", "Return the other of the few.")
    texts, labels = library_docstrings(per_class=5, root=library(tmp_path, asyncio=many, email=few))
    assert Counter(labels) == {"asyncio": 5, "email": 2}
    assert "number 0 " in texts[0]
    assert "number 29 " in texts[4]


def test_a_python_without_sources_says_what_to_do_instead(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no sources") as caught:
        library_docstrings(root=tmp_path)
    assert caught.value.where == str(tmp_path)
    assert "--data" in str(caught.value.help)
