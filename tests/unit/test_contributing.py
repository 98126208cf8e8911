"""The recipe for a knob in CONTRIBUTING is a knob that works."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest

from autotune.core.knob import Knob, run_stage
from autotune.knobs.stages import ADAPT, Adaptation
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
    knob = recipe.FREEZE_NORMS
    assert isinstance(knob, Knob)
    model = tiny_models.build("bert")
    total = sum(p.numel() for p in model.parameters() if p.requires_grad)
    state = run_stage(ADAPT, Adaptation(model=model), (knob,), {knob.name: "yes"})
    trained = sum(p.numel() for p in state.model.parameters() if p.requires_grad)
    assert 0 < trained < total
    norms = [m for m in state.model.modules() if type(m).__name__ == "LayerNorm"]
    assert norms
    assert not any(p.requires_grad for norm in norms for p in norm.parameters())
    assert knob.show("yes") == "norms frozen"
