"""Random transformers models of two blocks, small enough to train in milliseconds."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from autotune.core.context import ModelFacts

torch.set_num_threads(1)  # threads cost more than they give on tensors this small

VOCAB, HIDDEN, HEADS, FFN, LAYERS = 64, 32, 4, 64, 2

_USUAL = {
    "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "intermediate_size": FFN, "vocab_size": VOCAB,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
_SEQ2SEQ = {
    "d_model": HIDDEN, "encoder_layers": LAYERS, "decoder_layers": LAYERS,
    "encoder_attention_heads": HEADS, "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": FFN, "decoder_ffn_dim": FFN, "vocab_size": VOCAB, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "forced_eos_token_id": None,
}  # fmt: skip
_GROUPED = {**_USUAL, "num_key_value_heads": 2}

CONFIGS: dict[str, dict[str, object]] = {
    "gpt2": {
        "n_embd": HIDDEN, "n_layer": LAYERS, "n_head": HEADS, "vocab_size": VOCAB,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    },
    "llama": _GROUPED,
    "qwen2": _GROUPED,
    "qwen3": {**_GROUPED, "head_dim": 16},
    "gemma2": {**_GROUPED, "head_dim": 16, "sliding_window": 8},
    "mistral": _GROUPED,
    "bert": _USUAL,
    "roberta": _USUAL,
    "electra": {**_USUAL, "embedding_size": HIDDEN},
    "distilbert": {
        "dim": HIDDEN, "hidden_dim": FFN, "n_layers": LAYERS, "n_heads": HEADS,
        "vocab_size": VOCAB, "pad_token_id": 0,
    },
    "t5": {
        "d_model": HIDDEN, "d_kv": 8, "d_ff": FFN, "num_layers": LAYERS, "num_heads": HEADS,
        "vocab_size": VOCAB, "decoder_start_token_id": 0,
    },
    "bart": _SEQ2SEQ,
    "whisper": {
        **_SEQ2SEQ, "num_mel_bins": 8, "max_source_positions": 8, "suppress_tokens": None,
        "begin_suppress_tokens": None,
    },
    "vit": {**_USUAL, "image_size": 16, "patch_size": 8},
    "opt": {**_USUAL, "ffn_dim": FFN, "word_embed_proj_dim": HIDDEN},
    "gpt_neox": _USUAL,
}  # fmt: skip

CAUSAL = ("gpt2", "llama", "qwen2", "qwen3", "gemma2", "mistral", "opt", "gpt_neox")


def build(family: str, *, dtype: str = "float32", attention: str = "sdpa", seed: int = 0,
          dropout: bool = False) -> nn.Module:  # fmt: skip
    """A random model in training mode; a language model, or the bare encoder (-decoder)."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
    from transformers import AutoModelForSequenceClassification as AutoModelForClasses

    config = AutoConfig.for_model(family, **CONFIGS[family])
    kind = AutoModelForCausalLM if family in CAUSAL else AutoModel
    if family in ("bert", "roberta", "distilbert", "electra"):
        kind, config.num_labels = AutoModelForClasses, 3
    torch.manual_seed(seed)
    options = {} if family == "gemma2" else {"attn_implementation": attention}  # has no sdpa
    model = kind.from_config(config, dtype=getattr(torch, dtype), **options)
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms off their special values
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape).to(parameter.dtype) * 0.1)
            elif parameter.ndim == 2:
                parameter.mul_(4.0)
    if not dropout:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            for name in ("dropout", "attention_dropout", "dropout_prob", "activation_dropout"):
                if isinstance(getattr(module, name, None), float):
                    setattr(module, name, 0.0)
    return model.train()


def facts(family: str, *, pretrained: bool = True) -> ModelFacts:
    """What rules know of such a model; classifiers have no vocabulary of outputs."""
    grouped = "num_key_value_heads" in CONFIGS[family]
    return ModelFacts(
        name=family,
        family=family,
        layers=LAYERS,
        heads=HEADS,
        kv_heads=2 if grouped else HEADS,
        hidden=HIDDEN,
        ffn=FFN,
        vocab=VOCAB if family in CAUSAL else 0,
        pretrained=pretrained,
    )


def inputs(family: str, *, batch: int = 4, tokens: int = 8, seed: int = 0) -> dict[str, Tensor]:
    """Inputs for the bare forward pass of a family."""
    chance = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCAB, (batch, tokens), generator=chance)
    if family == "vit":
        return {"pixel_values": torch.randn(batch, 3, 16, 16, generator=chance)}
    if family == "whisper":
        features = torch.randn(batch, 8, 16, generator=chance)
        return {"input_features": features, "decoder_input_ids": ids}
    if family in ("t5", "bart"):
        return {"input_ids": ids, "decoder_input_ids": ids.flip(1)}
    return {"input_ids": ids}


def output(model: nn.Module, family: str) -> Tensor:
    """What a family's forward pass gives: logits, or last hidden states."""
    cached = {} if family == "vit" or family not in CAUSAL else {"use_cache": False}
    out = model(**_in_dtype(inputs(family), model), **cached)
    return out.logits if "logits" in out else out.last_hidden_state


def loss(model: nn.Module, family: str, chunks: int = 1) -> Tensor:
    """Next-token loss of a language model, or the loss of a classifier."""
    from autotune.knobs.chunked_loss import chunked_cross_entropy

    batch = inputs(family)
    if family not in CAUSAL:
        return model(**batch, labels=torch.tensor([0, 1, 2, 1])).loss
    ids = batch["input_ids"]
    if chunks == 1:
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
        return nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    head = model.get_output_embeddings()
    return chunked_cross_entropy(hidden, head.weight, ids[:, 1:], chunks, head.bias)


TASKS = ("gpt2", "llama", "bert", "t5", "bart", "vit", "whisper")
"""Families that stand for all others: each is trained on the task that it is made for."""


def build_task(family: str, *, dtype: str = "float32", attention: str = "sdpa") -> nn.Module:
    """A random model with the head of its task, in training mode, without dropout."""
    import transformers as hf

    kinds = {
        "t5": hf.AutoModelForSeq2SeqLM,
        "bart": hf.AutoModelForSeq2SeqLM,
        "vit": hf.AutoModelForImageClassification,
        "whisper": hf.AutoModelForSpeechSeq2Seq,
    }
    if family not in kinds:
        return build(family, dtype=dtype, attention=attention)
    config = hf.AutoConfig.for_model(family, **CONFIGS[family])
    config.num_labels = 3
    config.use_cache = False
    torch.manual_seed(0)
    model = kinds[family].from_config(
        config, dtype=getattr(torch, dtype), attn_implementation=attention
    )
    for module in model.modules():
        for name in ("p", "dropout", "attention_dropout", "activation_dropout", "dropout_prob"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model.train()


def task_loss(model: nn.Module, family: str, chunks: int = 1, seed: int = 0) -> Tensor:
    """The loss of the task that a family is made for."""
    if family in CAUSAL or family == "bert":
        return loss(model, family, chunks)
    batch = _in_dtype(inputs(family, seed=seed), model)
    if family == "vit":
        return model(**batch, labels=torch.tensor([0, 1, 2, 1])).loss
    labels = batch.pop("decoder_input_ids")
    return model(**batch, labels=labels, use_cache=False).loss


def _in_dtype(batch: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Pixels and spectra in the dtype of the weights that meet them first; tokens as they are."""
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    return {n: t.to(dtype) if t.is_floating_point() else t for n, t in batch.items()}
