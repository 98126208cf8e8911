"""What every shipped space owes its users."""

from __future__ import annotations

import pytest

from autotune.core.context import Context, Device, ModelFacts
from autotune.core.knob import Numerics
from autotune.core.space import load_space, shipped_spaces
from autotune.core.space.model import MOST_TO_COUNT
from autotune.knobs import BUILTIN

GPT = ModelFacts(
    name="tiny", family="gpt2", layers=4, heads=4, kv_heads=4, hidden=64, ffn=256, vocab=512,
    pretrained=True,
)  # fmt: skip
CONTEXT = Context(
    device=Device(kind="cpu", cores=2),
    model=GPT,
    global_batch=16,
    libraries=frozenset({"peft"}),
)
spaces = pytest.mark.parametrize("name", shipped_spaces())


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_the_spaces_that_the_documentation_names_are_shipped():
    named = {"default", "lossless", "smoke", "qlora", "compress", "from_scratch", "inference"}
    named |= {"parallel"}
    assert set(shipped_spaces()) == named


@spaces
def test_it_is_read_and_says_what_it_is_for(name):
    space = load_space(name, BUILTIN)
    assert space.name == name
    assert 20 <= len(space.summary) <= 80


@spaces
def test_its_baseline_is_all_neutral_and_legal(name):
    space = load_space(name, BUILTIN)
    assert not space.baseline()
    assert space.reasons(space.baseline(), CONTEXT) == ()


@spaces
def test_its_smallest_configuration_is_legal_and_lean(name):
    space = load_space(name, BUILTIN)
    smallest = space.smallest(CONTEXT)
    assert space.reasons(smallest, CONTEXT) == ()
    lean = [n for n, d in space.domains.items() if space.knob(n).leanest in d]
    assert sum(smallest.get(n, space.knob(n).neutral) == space.knob(n).leanest for n in lean) >= 2


@spaces
def test_each_of_its_knobs_has_a_choice(name):
    space = load_space(name, BUILTIN)
    assert all(domain.size != 1 for domain in space.domains.values())


@spaces
def test_its_legal_configurations_can_be_counted(name):
    space = load_space(name, BUILTIN)
    count = space.count(CONTEXT)
    assert count is None or count > 3
    assert (count is None) == (space.size is None or space.size > MOST_TO_COUNT)


def test_lossless_has_exact_knobs_only():
    space = load_space("lossless", BUILTIN)
    assert {space.knob(name).numerics for name in space.domains} == {Numerics.EXACT}


def test_default_varies_only_what_saves_memory_while_training():
    space = load_space("default", BUILTIN)
    assert all(space.knob(name).leanest != space.knob(name).neutral for name in space.domains)
    assert space.purpose == "training"


def test_inference_minimises_what_it_says():
    assert load_space("inference", BUILTIN).purpose == "inference"
