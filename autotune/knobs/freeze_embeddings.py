"""Input embeddings that stay as they were loaded.

With a large vocabulary they are much of a small model, and each word of a batch moves only its own
row. What stands between the tables and the first block (positions, a norm, a projection; for images
and spectra the layer that cuts them up) is frozen with them: as long as any of it trains, backward
has to come down through every block, frozen or not (`freeze.layers`).

Where input and output layer are one tensor, the output layer is frozen too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from autotune.core.context import Context
from autotune.core.domains import Choice
from autotune.core.knob import Knob, Numerics
from autotune.knobs.freeze_layers import reason_not_to_freeze
from autotune.knobs.stages import ADAPT, on_model

if TYPE_CHECKING:
    from torch import nn

OTHER_INPUTS = frozenset({"conv1", "conv2", "project_in", "wpe", "wte"})
"""Modules below the first block whose name does not have `embed` in it: Whisper's, OPT's, GPT-2's.
"""


def _freeze(model: nn.Module, value: str) -> nn.Module:
    from autotune.core.errors import ModelError

    found = list(_input_parameters(model))
    if not found:
        raise ModelError(
            f"{type(model).__name__} has no input embeddings that are known as such",
            help="set freeze.embeddings to no",
        )
    for parameter in found:
        parameter.requires_grad_(False)
    return model


def _input_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the parameters below the first block, tables that are tied to the output included."""
    from torch import nn
    from transformers.modeling_layers import GradientCheckpointingLayer

    blocks = [
        f"{name}." for name, m in model.named_modules() if isinstance(m, GradientCheckpointingLayer)
    ]
    head = getattr(model, "get_output_embeddings", lambda: None)()
    outputs = {id(p) for p in head.parameters()} if head is not None else set()
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for name, parameter in model.named_parameters():
        if name.startswith(tuple(blocks)):
            continue
        named = any("embed" in part or part in OTHER_INPUTS for part in name.split("."))
        if id(parameter) in tables or (named and id(parameter) not in outputs):
            yield parameter


def _needs_trained_embeddings(value: str, context: Context) -> str | None:
    if value == "no":
        return None
    return reason_not_to_freeze("freeze.embeddings", "no", context)


FREEZE_EMBEDDINGS = Knob(
    name="freeze.embeddings",
    help="Input embeddings (words, positions, and their norm) do not train; nor does the output "
    "layer where it is tied to them.",
    domain=Choice(("no", "yes")),
    neutral="no",
    leanest="yes",
    label="freeze embeddings",
    numerics=Numerics.LOSSY,
    transforms=(ADAPT.do(on_model(_freeze)),),
    blocked=_needs_trained_embeddings,
    references=("Lee et al. 2019, arXiv:1911.03090",),
)
