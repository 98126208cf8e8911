"""What is handed on loads with plain transformers, whatever a value did to the model on the way.

For every value that changes the model itself, on a family which a digest chooses: the deployed
model has only the modules that transformers builds, is saved, loaded, and gives the same output.
Where it computes what was trained, it also scores the same; `ROUNDED` says which do not, and why.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest
import torch

from autotune.core.domains import Value
from autotune.core.knob import Knob
from autotune.knobs.stages import ADAPT, COMPRESS, DEPLOY, LOAD
from tests import tiny_models as tiny
from tests.contract.knob_trial import CHOICES, EXPENSIVE, Trial, reason, with_companions

CHANGING = [
    choice
    for choice in CHOICES
    if choice[0].name not in EXPENSIVE
    and {bound.stage for bound in choice[0].transforms} & {LOAD, ADAPT, COMPRESS, DEPLOY}
]

ROUNDED = {
    "deploy.activation_bits": "rounds inputs while it is evaluated, which transformers does not",
    "activation_bits": "rounds what is kept for backward, and nothing that is computed",
    "precision": "computes in another type than it stores",
    "float8": "rounds products while it trains",
    "cache_bits": "rounds what attention keeps while it is evaluated",
    "attention": "sums in another order",
}


def _legal(knob: Knob, value: Value) -> tuple[str, dict[str, Value]] | None:
    """Return the family that the value is tried on, and what it needs there; None if on none."""
    start = zlib.crc32(f"{knob.name}={value}".encode())
    for index in range(len(tiny.TASKS)):
        family = tiny.TASKS[(start + index) % len(tiny.TASKS)]
        if (config := with_companions(knob, value, family)) is not None:
            return family, config
    return None


@pytest.mark.parametrize("choice", CHANGING, ids=lambda c: f"{c[0].name}={c[1]}")
def test_every_deployed_model_loads_with_plain_transformers(
    choice: tuple[Knob, Value], tmp_path: Path
) -> None:
    found = _legal(*choice)
    if found is None:
        said = [reason({choice[0].name: choice[1]}, family) for family in tiny.TASKS]
        assert all(len(str(sentence).split()) > 5 for sentence in said)
        return
    family, config = found
    trial = Trial(config, family)
    trial.train(2)
    trial.compress()
    with torch.no_grad():
        scored = tiny.output(trial.model.eval(), family).float()
    model = trial.saved()
    known = {type(module) for module in tiny.build_task(family).modules()}
    assert {type(module) for module in model.modules()} <= known, (family, config)
    model.save_pretrained(tmp_path)
    restored = type(model).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        deployed, loaded = tiny.output(model, family), tiny.output(restored, family)
    exactly = 1e-5 if "attention" in config else 0.0  # transformers loads with its own kernel
    torch.testing.assert_close(loaded, deployed, atol=exactly, rtol=exactly)
    tolerance = 0.05 if set(config) & set(ROUNDED) else 1e-4
    torch.testing.assert_close(deployed.float(), scored, atol=tolerance, rtol=tolerance)
