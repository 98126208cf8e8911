"""Float8 products: which layers change, and what is refused, without the library that does it."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from autotune.core.errors import ModelError
from autotune.core.knob import run_stage
from autotune.knobs.blocks import find_linears
from autotune.knobs.float8 import FLOAT8
from autotune.knobs.stages import ADAPT, DEPLOY, Adaptation
from tests import tiny_models as tiny


class _Rounded(nn.Linear):
    """What a library puts in place of a linear layer."""


@pytest.fixture(autouse=True)
def _library(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in with the documented call, `convert_to_float8_training(m, module_filter_fn=f)`."""
    library = ModuleType("torchao.float8")

    def convert(module: nn.Module, *, module_filter_fn) -> nn.Module:
        for name, layer in list(module.named_modules()):
            if type(layer) is nn.Linear and module_filter_fn(layer, name):
                layer.__class__ = _Rounded
        return module

    library.convert_to_float8_training = convert
    monkeypatch.setitem(sys.modules, "torchao", ModuleType("torchao"))
    monkeypatch.setitem(sys.modules, "torchao.float8", library)


def test_linear_layers_of_the_blocks_change_and_are_plain_again_when_deployed() -> None:
    model = tiny.build("llama")
    parameters = {name: id(p) for name, p in model.named_parameters()}
    with torch.no_grad():
        before = tiny.output(model, "llama")
    model = run_stage(ADAPT, Adaptation(model=model), (FLOAT8,), {"float8": "yes"}).model
    assert {type(layer) for layer in find_linears(model).values()} == {_Rounded}
    assert type(model.lm_head) is nn.Linear
    model = run_stage(DEPLOY, model, (FLOAT8,), {"float8": "yes"})
    assert {type(layer) for layer in find_linears(model).values()} == {nn.Linear}
    assert {name: id(p) for name, p in model.named_parameters()} == parameters
    with torch.no_grad():
        assert torch.equal(tiny.output(model, "llama"), before)


def test_layers_that_do_not_fit_are_refused() -> None:
    state = Adaptation(model=tiny.build("gpt2"))  # its layers are transposed
    with pytest.raises(ModelError, match="multiples of 16"):
        run_stage(ADAPT, state, (FLOAT8,), {"float8": "yes"})
