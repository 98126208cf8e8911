"""Low-rank adapters on the linear layers of the blocks: put on, thinned out, and merged again.

The update of a layer is `B @ A` with `r` rows and columns between; only those train. Adapters are
put in place (the model keeps its class), in the dtype of the model's weights: fp32 adapters on a
bf16 model would keep an fp32 copy of every layer's input, and the optimizer rounds bf16 updates
stochastically, so they do not stall.

Merging computes each dense weight anew in fp32, with its update and its magnitudes, and rounds it
once. peft's own merge would add a rounded update to a rounded weight, and knows nothing of layers
that were packed when the adapters came.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from autotune.core.errors import ModelError
from autotune.knobs.architectures import ATTENTION_HEADS, FEED_FORWARD
from autotune.knobs.blocks import dense_weight, find_linears, is_dense, replace_module

if TYPE_CHECKING:
    from torch import Tensor

ADAPTER = "default"
"""peft's name for the only adapter of a layer."""


def put_adapters(model: nn.Module, rank: int) -> nn.Module:
    """Freeze a model and put an adapter on every linear layer of its blocks.

    A task head that is not pretrained (a classifier) trains as it is.

    Args:
        model: A transformers model; its layers may be packed.
        rank: Rows of each `A`, and columns of each `B`, at least 1.

    Returns:
        The same model.

    Raises:
        ModelError: If it is no transformers model, or has no blocks.
    """
    from peft import LoraConfig, inject_adapter_in_model

    if not isinstance(model, PreTrainedModel):
        raise ModelError(
            f"adapters need a transformers model, and {type(model).__name__} is none",
            help="set lora.rank to 0",
        )
    linears = find_linears(model)
    dtypes = {name: dense_weight(layer).dtype for name, layer in linears.items()}
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=0.0,
        target_modules=list(linears),
        fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in linears.values()),
    )
    inject_adapter_in_model(config, model)
    for name, dtype in dtypes.items():
        for part in ("lora_A", "lora_B"):
            model.get_submodule(f"{name}.{part}").to(dtype)
    _train_head(model)
    return model


def keep_adapters(model: nn.Module, targets: str) -> nn.Module:
    """Take adapters off again, except those on the layers of one kind; the others stay frozen.

    Args:
        model: With adapters on every linear layer of its blocks.
        targets: `"attention"` or `"ffn"`, as `knobs/architectures.py` knows them.

    Returns:
        The same model.

    Raises:
        ModelError: If the family is unknown or the model has no adapter on such a layer.
    """
    adapted = _adapted(model)
    kept = _of_kind(adapted.keys(), _family(model), targets)
    for name, layer in adapted.items():
        if name not in kept:
            replace_module(model, name, layer.get_base_layer())
    return model


def add_magnitudes(model: nn.Module) -> nn.Module:
    """Make every adapter a weight-decomposed one (`knobs/dora.py`).

    Raises:
        ModelError: If there are no adapters, or one is on a layer whose weight cannot be rebuilt.
    """
    from autotune.knobs.dora import Dora, Magnitude

    for layer in _adapted(model).values():
        base = layer.get_base_layer()
        layer.lora_magnitude_vector[ADAPTER] = Magnitude(base)
        layer.lora_variant[ADAPTER] = Dora()
        layer.use_dora[ADAPTER] = True
    return model


def merge_adapters(model: nn.Module) -> nn.Module:
    """Add every adapter to its dense layer, which takes its place again; all parameters train.

    Nothing happens to a model without adapters.

    Args:
        model: With adapters or without; packed layers must have been made dense before.

    Returns:
        The same model.

    Raises:
        ModelError: If an adapter is on a layer whose weight is no dense parameter.
    """
    if "peft_config" not in vars(model):
        return model
    adapted = _adapted(model)
    for name, layer in adapted.items():
        base = layer.get_base_layer()
        if not (is_dense(base) and "weight" in dict(base.named_parameters(recurse=False))):
            raise ModelError(
                f"the adapter on {name} cannot be merged into a {type(base).__name__}, whose "
                "weight is no dense parameter",
                help="make packed layers dense first (autotune.knobs.packed.unpack_model)",
            )
    for name, layer in adapted.items():
        base = layer.get_base_layer()
        merged = _merged_weight(layer).to(base.weight.dtype)
        # In new memory: the frozen weight may be mapped from a file that must not be written to.
        base.weight.data = merged.t().contiguous() if isinstance(base, Conv1D) else merged
        replace_module(model, name, base)
    vars(model).pop("peft_config")
    return model.requires_grad_(True)


@torch.no_grad()
def _merged_weight(layer: Any) -> Tensor:
    """Return the weight that an adapted dense layer stands for, `(out, in)` in fp32."""
    update = layer.lora_B[ADAPTER].weight.float() @ layer.lora_A[ADAPTER].weight.float()
    merged: Tensor = dense_weight(layer.get_base_layer()).float() + layer.scaling[ADAPTER] * update
    if ADAPTER in layer.lora_magnitude_vector:
        lengths = merged.norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
        merged *= (layer.lora_magnitude_vector[ADAPTER].weight.float() / lengths)[:, None]
    return merged


def _adapted(model: nn.Module) -> dict[str, Any]:
    """Return peft's layers, by full name: not typed, for their attributes are set at run time."""
    from peft.tuners.lora import LoraLayer

    found = {str(n): m for n, m in model.named_modules() if isinstance(m, LoraLayer)}
    if not found:
        raise ModelError(
            f"{type(model).__name__} has no adapters", help="set lora.rank above 0 for them"
        )
    return found


def _family(model: nn.Module) -> str:
    return str(getattr(getattr(model, "config", None), "model_type", type(model).__name__))


def _of_kind(names: Set[str], family: str, targets: str) -> set[str]:
    """Return those of `names` that belong to attention or feed-forward layers of a family."""
    shapes: list[tuple[str | None, ...]] = []
    if targets == "ffn":
        shapes = [(*shape.inputs, shape.output) for shape in FEED_FORWARD.get(family, ())]
    elif heads := ATTENTION_HEADS.get(family):
        shapes = [(heads.query, heads.key, heads.value, heads.output)]
    found: set[str] = set()
    for shape in shapes:
        found |= _together(names, [path for path in shape if path is not None])
    if not found:
        raise ModelError(
            f"no adapter of a model of the family '{family}' is on a layer known as {targets}",
            help="set lora.targets to all",
        )
    return found


def _together(names: Set[str], paths: Sequence[str]) -> set[str]:
    """Return the names that stand under one owner at all of `paths`.

    One path alone would not tell them apart: BERT has an `output.dense` in both kinds of layers.
    """
    end = f".{paths[0]}"
    owners = [name.removesuffix(end) for name in names if name.endswith(end)]
    groups = [{f"{owner}.{path}" for path in paths} for owner in owners]
    return {name for group in groups if group <= names for name in group}


def _train_head(model: PreTrainedModel) -> None:
    """Let what stands behind the pretrained part train, unless it is an output embedding."""
    if model.get_output_embeddings() is not None:  # type: ignore[no-untyped-call]  # untyped there
        return
    base = getattr(model, model.base_model_prefix, model)
    inside = {id(parameter) for parameter in base.parameters()}
    for name, parameter in model.named_parameters():
        if id(parameter) not in inside or ".pooler." in name:
            parameter.requires_grad_(True)
