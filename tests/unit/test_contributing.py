"""The recipe for a knob in CONTRIBUTING is a knob that works."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest

from autotune.core.knob import Knob, run_stage
from autotune.knobs.stages import ADAPT
from tests import tiny_models

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    found = re.search(r"\+\+\+ autotune/knobs/(\w+)\.py\n(.*?)\n--- ", text, re.DOTALL)
    assert found is not None
    source = "\n".join(line[1:] for line in found[2].splitlines() if line.startswith("+"))
    module = types.ModuleType(f"autotune.knobs.{found[1]}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(source, f"{found[1]}.py", "exec"), vars(module))
    return module


def test_the_knob_does_what_it_says(recipe: types.ModuleType) -> None:
    knob = recipe.FREEZE_EMBEDDINGS
    assert isinstance(knob, Knob)
    model = tiny_models.build("bert")
    total = sum(p.numel() for p in model.parameters() if p.requires_grad)
    model = run_stage(ADAPT, model, (knob,), {knob.name: "on"})
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert 0 < trained < total
    assert not model.get_input_embeddings().weight.requires_grad
    assert knob.show("on") == "embeddings frozen"
