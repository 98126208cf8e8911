"""The recipes in CONTRIBUTING are a knob and an exporter that work, and its layers are checked."""

from __future__ import annotations

import re
import sys
import tomllib
import types
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import HfArgumentParser, TrainingArguments

from autotune.core.errors import CannotExport
from autotune.core.knob import Knob, run_stage
from autotune.core.registry import Registry
from autotune.export.base import EXPORTERS, Exporter
from autotune.knobs.stages import ADAPT, Adaptation
from tests import tiny_models
from tests.exports import subject_of

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], types.ModuleType]:
    """Makes the module that a recipe adds to a package."""

    def make(package: str) -> types.ModuleType:
        found = re.search(rf"\+\+\+ autotune/{package}/(\w+)\.py\n(.*?)\n--- ", TEXT, re.DOTALL)
        assert found is not None
        source = "\n".join(line[1:] for line in found[2].splitlines() if line.startswith("+"))
        module = types.ModuleType(f"autotune.{package}.{found[1]}")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        exec(compile(source, f"{found[1]}.py", "exec"), vars(module))
        return module

    return make


def test_the_knob_does_what_it_says(recipe: Callable[[str], types.ModuleType]) -> None:
    knob = recipe("knobs").FREEZE_NORMS
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


def test_transformers_reads_what_the_exporter_writes(
    recipe: Callable[[str], types.ModuleType], tmp_path: Path
) -> None:
    recipe("export")
    line = re.search(r'^\+ +"(\w+)": "(autotune\.export\.\w+:EXPORTER)",$', TEXT, re.MULTILINE)
    assert line is not None
    assert line[1] not in EXPORTERS.names()
    exporter = Registry[Exporter]("target", {line[1]: line[2]}, listing="").load(line[1])
    assert exporter.name == line[1]
    config = {"accumulation": 4, "precision": "bf16_mixed"}
    (written,) = exporter.make(subject_of(config)).write(tmp_path)
    (read,) = HfArgumentParser(TrainingArguments).parse_json_file(str(written))
    assert (read.per_device_train_batch_size, read.gradient_accumulation_steps) == (2, 4)
    assert (read.max_steps, read.warmup_steps, read.learning_rate) == (20, 2, 1e-4)
    assert read.bf16
    with pytest.raises(CannotExport, match="2 settings") as caught:
        exporter.make(subject_of({"prune.ffn": 0.5, "precision": "bf16"}))
    assert any("set it to bf16_mixed" in line for line in caught.value.context)


def test_the_layers_are_those_that_are_checked() -> None:
    (contract,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"][
        "contracts"
    ]
    layers = [layer.replace("autotune.", "") for layer in contract["layers"]]
    assert " → ".join(f"`{layer}`" for layer in layers) in TEXT
