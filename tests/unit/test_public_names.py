"""The public names: all of them there, and light to import."""

from __future__ import annotations

from importlib.metadata import version

import pytest

import autotune


def test_every_public_name_is_there() -> None:
    for name in autotune.__all__:
        assert getattr(autotune, name) is not None
    assert callable(autotune.tune)
    assert autotune.tune.__module__ == "autotune.tuner"


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'tuna'"):
        autotune.tuna  # noqa: B018  the access is the test


def test_version_is_that_of_the_distribution() -> None:
    assert autotune.__version__ == version("autotune-memory")
