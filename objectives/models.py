"""How a model is built, and what it looks like before it is.

Building is what transformers does with a folder or a configuration, with two promises on top: the
random weights of a seed are the same in every dtype, and nothing is printed.
"""

from __future__ import annotations

import copy
import os
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.initialization import no_init_weights

from autotune.core.context import ModelFacts
from autotune.core.errors import ModelError
from autotune.knobs.stages import LoadPlan

from .sources import ModelSource, loadable, quiet, stored_weights

_OFFSET_POSITIONS = frozenset({"camembert", "longformer", "mpnet", "roberta", "xlm-roberta"})
_DEPTHS = ("num_hidden_layers", "num_decoder_layers", "encoder_layers", "decoder_layers")
_FFN_NAMES = ("intermediate_size", "n_inner", "ffn_dim", "hidden_dim", "d_ff", "encoder_ffn_dim")


def build_model(
    kind: Any, source: ModelSource, config: PreTrainedConfig, plan: LoadPlan, seed: int
) -> nn.Module:
    """Build a model on the CPU, in training mode.

    Random weights are drawn in fp32 and then rounded, so that all dtypes start from the same model.

    Args:
        kind: A class such as `AutoModelForCausalLM`.
        source: Where weights are, if there are any.
        config: What to build; kept as it is.
        plan: Dtype and attention kernel; with `shapes_only`, the model is on the device `meta`.
        seed: Of the weights that are new.

    Raises:
        ModelError: If transformers cannot build it like that.
    """
    dtype = getattr(torch, plan.dtype)
    config = copy.deepcopy(config)
    config.use_cache = False
    if plan.layers:
        _shorten(config, plan.layers)
    options = {"attn_implementation": plan.attention, "trust_remote_code": source.trust}
    if plan.shapes_only:
        with quiet(), loadable(source):
            return _shapes(kind, source, config, dtype, options).train()
    torch.manual_seed(seed)
    with quiet(), loadable(source):
        if source.pretrained:
            # In one thread: what threads of a loader allocate, no instrument of this one sees.
            os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"
            model = kind.from_pretrained(
                source.folder,
                config=config,
                dtype=dtype,
                ignore_mismatched_sizes=True,  # a task head of another size is made anew
                local_files_only=True,
                **options,
            )
        else:
            model = kind.from_config(config, dtype=torch.float32, **options)
            for parameter in model.parameters():
                parameter.data = parameter.data.to(dtype)
            model.config.dtype = dtype
    assert isinstance(model, nn.Module)
    return model.train()


def _shorten(config: PreTrainedConfig, layers: int) -> None:
    """Have a configuration ask for fewer blocks.

    Raises:
        ModelError: If its stacks are not equally deep.
    """
    text = config.get_text_config()
    names = [name for name in _DEPTHS if isinstance(getattr(text, name, None), int)]
    if len({getattr(text, name) for name in names}) != 1 or text.num_hidden_layers < layers:
        raise ModelError(f"the family '{text.model_type}' cannot be built with {layers} blocks")
    for name, entry in list(vars(text).items()):
        if isinstance(entry, list | tuple) and len(entry) == text.num_hidden_layers:
            setattr(text, name, entry[:layers])
    for name in names:
        setattr(text, name, layers)


def _shapes(
    kind: Any,
    source: ModelSource,
    config: PreTrainedConfig,
    dtype: torch.dtype,
    options: dict[str, Any],
) -> nn.Module:
    """Build the model on the device `meta`, with the dtypes and ties that it would have."""
    with torch.device("meta"), no_init_weights():
        made_in = dtype if source.pretrained else torch.float32
        model = kind.from_config(config, dtype=made_in, **options)
        model.tie_weights()
    assert isinstance(model, nn.Module)
    stored = {_bare(model, name): weight for name, weight in stored_weights(source).items()}
    usual = str(config.get_text_config().dtype or torch.float32)
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(_loaded_dtype(model, name, dtype, source))
        shape = tuple(parameter.shape)
        found = stored.get(_bare(model, name)) if stored else (usual, shape)
        if source.pretrained and found == (str(parameter.dtype), shape):
            # It is read through a memory map.
            parameter.from_file = True  # type: ignore[attr-defined]  # a mark of ours
    model.config.dtype = dtype
    return model


def _bare(model: Any, name: str) -> str:
    """Return the name of a weight without that of the model inside of one with a head."""
    return name.removeprefix(f"{getattr(model, 'base_model_prefix', '')}.")


def _loaded_dtype(model: Any, name: str, dtype: torch.dtype, source: ModelSource) -> torch.dtype:
    """Return the dtype in which a weight is loaded: some layers ask to stay in fp32."""
    wide = list(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    if dtype is torch.float16:
        wide += getattr(model, "_keep_in_fp32_modules", None) or ()
    kept = source.pretrained and any(part in name.split(".") for part in wide)
    return torch.float32 if kept else dtype


def describe_model(
    kind: Any, source: ModelSource, config: PreTrainedConfig, *, vocab: int
) -> tuple[ModelFacts, str]:
    """Read a model's shape from its configuration, and count its parameters without making them.

    Args:
        kind: A class such as `AutoModelForCausalLM`.
        source: Where it comes from.
        config: Its configuration.
        vocab: Outputs per token; 0 if the model does not predict tokens.

    Returns:
        The facts, and a sentence that the user should read, or an empty one.

    Raises:
        ModelError: If transformers cannot build it.
    """
    with torch.device("meta"), quiet(), loadable(source):
        model = kind.from_config(
            copy.deepcopy(config), attn_implementation="eager", trust_remote_code=source.trust
        )
    text = config.get_text_config()
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    heads = int(getattr(text, "num_attention_heads", 0) or 0)
    hidden = int(getattr(text, "hidden_size", 0) or 0)
    ffn = next((f for n in _FFN_NAMES if (f := getattr(text, n, None))), 4 * hidden)
    facts = ModelFacts(
        name=source.name,
        family=text.model_type,
        layers=int(getattr(text, "num_hidden_layers", 0) or 0),
        heads=heads,
        kv_heads=int(getattr(text, "num_key_value_heads", None) or heads),
        hidden=hidden,
        ffn=int(ffn[0] if isinstance(ffn, list | tuple) else ffn),
        vocab=vocab,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        pretrained=source.pretrained,
        tied=head is not None and head.weight is table.weight,
    )
    fused = getattr(model, "_supports_sdpa", True)
    return facts, "" if fused else f"{source.name} has only eager attention: --set attention=eager"


def longest_sequence(config: PreTrainedConfig) -> int | None:
    """Return the most tokens that a model has positions for; None if it has no limit."""
    text = config.get_text_config()
    positions = int(getattr(text, "max_position_embeddings", None) or 0)
    if text.model_type in _OFFSET_POSITIONS:
        positions -= (text.pad_token_id or 0) + 1  # these families number positions from there on
    return positions if positions > 0 else None


def check_sequence_length(asked: int, source: ModelSource, config: PreTrainedConfig) -> None:
    """Hold a sequence length against the model's positions.

    Raises:
        ModelError: If it is longer.
    """
    most = longest_sequence(config)
    if most is not None and asked > most:
        raise ModelError(
            f"sequences of {asked} tokens are longer than the {most} that {source.name} "
            "has positions for",
            where=source.folder,
            help=f"set training.sequence_length to {most} or less in the space file",
        )
