"""Products of the blocks in eight-bit floating point, forward and backward, on tensor cores.

Weights and gradients stay in the dtype of the model; inputs, weights and gradients of a product are
scaled and rounded to float8 for the moment of it (dynamic scaling, one scale per tensor). What that
gives is speed: saved activations stay as wide as they were. Needs tensor cores of compute
capability 8.9 and the library torchao.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from autotune.core.context import Context
from autotune.core.domains import Choice
from autotune.core.errors import ModelError
from autotune.core.knob import Knob, Numerics
from autotune.knobs.architectures import RECURRENT
from autotune.knobs.stages import ADAPT, DEPLOY, on_model

if TYPE_CHECKING:
    from torch import nn

MULTIPLE = 16
"""What both widths of a layer must be a multiple of, for the float8 product."""

NEEDED = (8, 9)


def _round_products(model: nn.Module, value: str) -> nn.Module:
    from autotune.knobs.blocks import find_linears

    linears = find_linears(model)
    fit = {name for name, layer in linears.items() if _fits(layer)}
    left = sorted(linears.keys() - fit)
    if left:
        raise ModelError(
            f"'{left[0]}' and {len(left) - 1} other layers of {type(model).__name__} are not "
            f"linear with widths that are multiples of {MULTIPLE}",
            help="set float8 to no",
        )

    def chosen(module: nn.Module, name: str) -> bool:
        return name in fit

    library = importlib.import_module("torchao.float8")
    changed: nn.Module = library.convert_to_float8_training(model, module_filter_fn=chosen)
    return changed


def _fits(layer: nn.Module) -> bool:
    from torch import nn

    return (
        type(layer) is nn.Linear
        and layer.in_features % MULTIPLE == 0
        and layer.out_features % MULTIPLE == 0
    )


def _plain_again(model: nn.Module, value: str) -> nn.Module:
    import torch
    from torch import nn

    from autotune.knobs.blocks import find_linears, replace_module

    for name, layer in find_linears(model).items():
        if type(layer) is nn.Linear or not isinstance(layer, nn.Linear):
            continue
        with torch.device("meta"):  # shapes only: the parameters are put in below
            plain = nn.Linear(layer.in_features, layer.out_features)
        plain.weight, plain.bias = layer.weight, layer.bias
        replace_module(model, name, plain.train(layer.training))
    return model


def _needs_tensor_cores(value: str, context: Context) -> str | None:
    if value == "no":
        return None
    device, config = context.device, context.config
    if device.kind == "cpu":
        return "a CPU has no instructions for float8 products: set float8 to no"
    if device.capability is not None and device.capability < NEEDED:
        return (
            f"{device.name or device.label} has compute capability {device.capability[0]}."
            f"{device.capability[1]}, and float8 products need 8.9: set float8 to no"
        )
    if context.model.family in {"gpt2", *RECURRENT}:
        return (
            f"models of the family '{context.model.family}' have no plain linear layers that "
            "float8 products could replace: set float8 to no"
        )
    for knob, plain in (("lora.rank", 0), ("weight_bits", 16), ("qat.bits", 16)):
        if config.get(knob, plain) != plain:
            return (
                "float8 products are for layers whose dense weights train: set float8 to no, "
                f"or {knob} to {plain}"
            )
    if config.get("precision", "fp32") not in ("bf16", "bf16_mixed"):
        return "float8 products are summed in bf16: set precision to bf16 or bf16_mixed"
    return context.lacks("torchao", "float8")


FLOAT8 = Knob(
    name="float8",
    help="Computes the products of the blocks in eight-bit floating point, which is faster on "
    "recent GPUs and saves no memory.",
    domain=Choice(("no", "yes")),
    neutral="no",
    leanest="no",
    label="float8: {}",
    numerics=Numerics.LOSSY,
    transforms=(ADAPT.do(on_model(_round_products)), DEPLOY.do(_plain_again)),
    blocked=_needs_tensor_cores,
    references=("Micikevicius et al. 2022, arXiv:2209.05433",),
)
