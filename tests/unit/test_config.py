"""Configurations: compared by content, printed as differences, named by what matters."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.core.config import Config
from tests.knobs import CHECKPOINTING, KNOBS, RANK, SHARE

VALUES = st.fixed_dictionaries(
    {}, optional={knob.name: st.sampled_from(knob.domain.grid()) for knob in KNOBS}
)


@given(VALUES)
def test_a_configuration_survives_json(values):
    config = Config(values, KNOBS)
    again = Config(json.loads(json.dumps(config.to_json())), KNOBS)
    assert again == config
    assert hash(again) == hash(config)
    assert again.fingerprint == config.fingerprint


@given(VALUES)
def test_neutral_values_and_the_order_of_knobs_do_not_matter(values):
    config = Config(values, KNOBS)
    spelled_out = Config(dict(reversed(config.complete(KNOBS).items())), KNOBS)
    assert spelled_out == config
    assert spelled_out.fingerprint == config.fingerprint
    assert set(config.complete(KNOBS)) == {knob.name for knob in KNOBS}


@given(VALUES, VALUES)
def test_fingerprints_tell_configurations_apart(a, b):
    one, other = Config(a, KNOBS), Config(b, KNOBS)
    assert (one == other) == (one.fingerprint == other.fingerprint)


def test_a_configuration_prints_as_its_difference_from_the_baseline():
    config = Config({"lora.rank": 8, "checkpointing": "full", "share": 0.5}, KNOBS)
    assert config.describe(KNOBS) == "share 0.5, ckpt full, lora 8"
    assert Config({}, KNOBS).describe(KNOBS) == "baseline"
    assert repr(Config({"share": 0.5})) == "Config({'share': 0.5})"


def test_exact_knobs_leave_the_accuracy_key_alone():
    lossy = Config({RANK.name: 8}, KNOBS)
    both = Config({RANK.name: 8, CHECKPOINTING.name: "full"}, KNOBS)
    assert lossy.accuracy_key(KNOBS) == both.accuracy_key(KNOBS)
    assert lossy.accuracy_key(KNOBS) != Config({SHARE.name: 0.5}, KNOBS).accuracy_key(KNOBS)


def test_the_memory_key_knows_workload_and_device():
    config = Config({RANK.name: 8}, KNOBS)
    keys = {config.memory_key(w, d) for w in ("a", "b") for d in ("cpu", "cuda")}
    assert len(keys) == 4
    assert config.memory_key("a", "cpu") == Config({RANK.name: 8}).memory_key("a", "cpu")


def test_a_configuration_cannot_be_changed():
    with pytest.raises(TypeError):
        Config({})["share"] = 0.5
    with pytest.raises(KeyError):
        Config({})["share"]
    assert Config({}) != {}
