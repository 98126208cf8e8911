"""Low-rank adapters: the model is frozen, and each linear layer of its blocks gets a small update.

The update is `B @ A` with `r` rows and columns between; only those train, so gradients and
optimizer states shrink to a few per cent. A task head that is not pretrained (a classifier) trains
as it is.

Adapters are put in place (the model keeps its class), in the dtype of the model's weights: fp32
adapters on a bf16 model would keep an fp32 copy of every layer's input, and the optimizer rounds
bf16 updates stochastically, so they do not stall. Deploying adds each update to its dense weight; a
packed weight was made dense before (`knobs/weight_bits.py`), so the merge loses nothing that
trained.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from autotune.core.context import Context
from autotune.core.domains import Choice
from autotune.core.errors import ModelError
from autotune.core.knob import Knob, Numerics
from autotune.knobs.stages import ADAPT, DEPLOY, OPTIMISE, OptimPlan, on_model

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


def _train_head(model: PreTrainedModel) -> None:
    """Let what stands behind the pretrained part train, unless it is an output embedding."""
    if model.get_output_embeddings() is not None:  # type: ignore[no-untyped-call]  # untyped there
        return
    base = getattr(model, model.base_model_prefix, model)
    inside = {id(parameter) for parameter in base.parameters()}
    for name, parameter in model.named_parameters():
        if id(parameter) not in inside or ".pooler." in name:
            parameter.requires_grad_(True)


def _put_adapters(model: nn.Module, value: int) -> nn.Module:
    from peft import LoraConfig, inject_adapter_in_model
    from transformers import PreTrainedModel
    from transformers.pytorch_utils import Conv1D

    from autotune.knobs.blocks import dense_weight, find_linears

    if not isinstance(model, PreTrainedModel):
        raise ModelError(
            f"adapters need a transformers model, and {type(model).__name__} is none",
            help="set lora.rank to 0",
        )
    linears = find_linears(model)
    dtypes = {name: dense_weight(layer).dtype for name, layer in linears.items()}
    config = LoraConfig(
        r=value,
        lora_alpha=2 * value,
        lora_dropout=0.0,
        target_modules=list(linears),
        fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in linears.values()),
    )
    inject_adapter_in_model(config, model)
    for name, dtype in dtypes.items():
        for adapter in ("lora_A", "lora_B"):
            model.get_submodule(f"{name}.{adapter}").to(dtype)
    _train_head(model)
    return model


def _merge_adapters(model: nn.Module, value: int) -> nn.Module:
    from peft.tuners.lora import LoraLayer
    from transformers.pytorch_utils import Conv1D

    from autotune.knobs.blocks import replace_module

    adapted = [(n, m) for n, m in model.named_modules() if isinstance(m, LoraLayer)]
    for name, layer in adapted:
        # Under adapters on a packed layer, a Conv1D may have come back only now.
        layer.fan_in_fan_out = isinstance(layer.get_base_layer(), Conv1D)  # type: ignore[attr-defined]  # of its subclasses
        layer.merge()
        replace_module(model, name, layer.get_base_layer())
    vars(model).pop("peft_config", None)
    return model.requires_grad_(True)


def _raise_rate(plan: OptimPlan, value: int) -> OptimPlan:
    return replace(plan, adapters=True)


def _needs_pretrained(value: int, context: Context) -> str | None:
    if value == 0:
        return None
    if context.model.family and not context.model.pretrained:
        return (
            "the model is trained from scratch, and adapters on random frozen weights learn "
            "nothing worth having: set lora.rank to 0"
        )
    return context.lacks("peft", "peft")


LORA_RANK = Knob(
    name="lora.rank",
    help="Rank of low-rank adapters on every linear layer of the blocks, which train in place of "
    "the model; 0 trains the model itself.",
    domain=Choice((0, 4, 8, 16, 32, 64)),
    neutral=0,
    leanest=4,
    label="lora {}",
    numerics=Numerics.LOSSY,
    transforms=(
        ADAPT.do(on_model(_put_adapters)),
        OPTIMISE.do(_raise_rate),
        DEPLOY.do(_merge_adapters),
    ),
    blocked=_needs_pretrained,
    references=("Hu et al. 2021, arXiv:2106.09685", "Schulman et al. 2025, LoRA Without Regret"),
)
