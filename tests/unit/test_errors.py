"""The tree of errors: exit statuses, suggestions, and the way through JSON."""

from __future__ import annotations

import json

import pytest

from autotune.core import errors
from autotune.core.errors import AutotuneError, BadValue, NothingFits, UnknownName, error_from_json

KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, AutotuneError)
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_kind_survives_json(kind):
    error = kind("what", where="mine.yaml:3:1", context=["a", "b"], help="type this")
    again = error_from_json(json.loads(json.dumps(error.to_json())))
    assert type(again) is kind
    assert again.to_json() == error.to_json()
    assert str(again) == "what"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_tree_is_drawn_with_its_exit_statuses(kind):
    drawn = [line for line in (errors.__doc__ or "").splitlines() if f" {kind.__name__} " in line]
    assert len(drawn) == 1
    status = next(word for word in drawn[0].split() if word.isdigit() or word == "status")
    assert kind.exit_status == (1 if status == "status" else int(status))


def test_usage_nothing_fits_and_failure_have_exit_statuses_of_their_own():
    assert (BadValue.exit_status, NothingFits.exit_status, AutotuneError.exit_status) == (2, 3, 1)


def test_an_unknown_name_suggests_the_closest_and_how_to_list_all():
    known = ["checkpointing", "precision", "precision"]
    error = UnknownName.among("knob", "checkpoiting", known, listing="autotune spaces knobs")
    assert error.message == "unknown knob 'checkpoiting'"
    assert error.help == "did you mean 'checkpointing'?  `autotune spaces knobs` lists all 2"


def test_an_unknown_name_without_listing_shows_what_is_known():
    assert UnknownName.among("sampler", "xyzzy", ["tpe", "gp"]).help == "known: gp, tpe"
    assert UnknownName.among("run", "x", []).help == "there is no run yet"


def test_json_of_an_unknown_kind_becomes_the_root():
    assert type(error_from_json({"error": "Strange", "message": "m"})) is AutotuneError
    assert error_from_json({"context": "no list"}).context == ()
