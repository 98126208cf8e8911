"""Which settings a training script in plain torch, transformers and peft can express.

Most of what a space offers is a few lines there. What is not (packed weights, short optimizer
states, masks, teachers) is said with what to do instead.
"""

from __future__ import annotations

from autotune.core.domains import Value
from autotune.export.base import Refusal, Subject, always, fine, only
from autotune.knobs.architectures import ATTENTION_HEADS, BLOCKS, FEED_FORWARD, Attention
from autotune.knobs.loss_chunks import CHANGES_LOGITS

TRANSPOSED = frozenset({"gpt2", "imagegpt", "openai-gpt"})
"""Families whose linear layers are stored the other way round."""


def _family(subject: Subject) -> str:
    return subject.spec.facts.model.family


def _plain_layers(what: str, subject: Subject) -> str:
    if _family(subject) in TRANSPOSED:
        return (
            f"the layers of the family '{_family(subject)}' are stored transposed, which would "
            f"take the script more lines than it may have; {what}"
        )
    return ""


def _prune_ffn(value: Value, subject: Subject) -> str:
    shapes = FEED_FORWARD.get(_family(subject), ())
    if len(shapes) != 1 or shapes[0].parts != 1:
        return "the feed-forward layers of this family are not plain ones; set prune.ffn to 0.0"
    return _plain_layers("set prune.ffn to 0.0", subject)


def _prune_heads(value: Value, subject: Subject) -> str:
    shape: Attention | None = ATTENTION_HEADS.get(_family(subject))
    if shape is None or shape.key is None or shape.uniform:
        return "query, key and value of this family are one layer; set prune.heads to 0.0"
    return _plain_layers("set prune.heads to 0.0", subject)


def _one_stack(knob: str) -> Refusal:
    """Return what stands against picking blocks of a model that has several stacks of them."""

    def refusal(value: Value, subject: Subject) -> str:
        known = len(BLOCKS.get(_family(subject), ())) == 1
        return "" if known else f"blocks of this family are not one stack; set {knob} to 0.0"

    return refusal


def _precision(value: Value, subject: Subject) -> str:
    if value == "fp16":
        return "torch's gradient scaler takes no fp16 weights; set precision to bf16 or fp16_mixed"
    if value == "bf16" and not subject.on_cuda:
        return _plain_layers("set precision to fp32", subject)
    return ""


def _optimizer(value: Value, subject: Subject) -> str:
    if value in ("adamw", "sgd", "lion", "adafactor"):
        return ""
    return f"{value} as it was measured is autotune's own; set optimizer to adamw or lion"


def _lora_targets(value: Value, subject: Subject) -> str:
    paths = target_paths(subject)
    return "" if paths else f"the {value} layers of this family are not plain ones"


def _chunks(value: Value, subject: Subject) -> str:
    if _family(subject) in CHANGES_LOGITS:
        return "this family changes its logits after the output layer; set loss_chunks to 1"
    return ""


def target_paths(subject: Subject) -> tuple[str, ...]:
    """Return the layers that `lora.targets` leaves adapters on, below their owner.

    Returns:
        None of them if their names are not known.
    """
    family = _family(subject)
    if subject.value("lora.targets") == "ffn":
        shapes = FEED_FORWARD.get(family, ())
        return (*shapes[0].inputs, shapes[0].output) if len(shapes) == 1 else ()
    heads = ATTENTION_HEADS.get(family)
    paths = (heads.query, heads.key, heads.value, heads.output) if heads else ()
    return tuple(path for path in paths if path is not None)


def _own_format(what: str, instead: str) -> Refusal:
    """Return the sentence against a format of bits, which bitsandbytes has for language models."""

    def refusal(value: Value, subject: Subject) -> str:
        language = subject.workload.objective == "causal_lm"
        more = ", or have those of bitsandbytes: --to axolotl" if language else ""
        return f"{what} in few bits are a format of autotune's own; {instead}{more}"

    return refusal


_NO_PACKING = _own_format("weights", "set weight_bits to 16")
_NO_TEACHER = "a teacher would take the script more lines than it may have; set distill to none"
_NO_COMPILER = "the parts that are compiled are chosen by autotune; set compile to none"
_NO_MASKS = "zeros are held by masks of autotune's own; set it to its neutral value"
_AFTERWARDS = "it acts on the trained model; export with --checkpoint, which applies it"

_ONE_PROCESS = (
    "the script is one process; --to torchtitan, accelerate or deepspeed for a layout, or set "
    "layout.ranks to 1"
)

EXPRESSED: dict[str, Refusal] = {
    "accumulation": fine,
    "activation_bits": always("activations are rounded by hooks of autotune's own; set it to 16"),
    "activation_budget": always(_NO_COMPILER),
    "activation_offload": always("activations move by hooks of autotune's own; set it to none"),
    "allocator": fine,
    "attention": fine,
    "cache_bits": always(_AFTERWARDS),
    "checkpointing": fine,
    "compile": always(_NO_COMPILER),
    "data.by_length": always("batches by length are made by the objective; set it to no"),
    "data.packing": always("rows of documents are made by the objective; set it to stream"),
    "data.pinned": fine,
    "data.storage": always("the script keeps all tokens in memory; set data.storage to memory"),
    "data.tokens": always("the script makes all tokens beforehand; set data.tokens to cached"),
    "deploy.activation_bits": always(_AFTERWARDS),
    "deploy.bits": always(_AFTERWARDS),
    "distill": always(_NO_TEACHER),
    "distill.temperature": always(_NO_TEACHER),
    "distill.weight": always(_NO_TEACHER),
    "float8": always("products in float8 are set up by torchao; set float8 to no"),
    "freeze.embeddings": fine,
    "freeze.layers": _one_stack("freeze.layers"),
    "global_batch": fine,
    "gradients": fine,
    "layout.context": always(_ONE_PROCESS),
    "layout.data": always(_ONE_PROCESS),
    "layout.pipeline": always(_ONE_PROCESS),
    "layout.ranks": always(_ONE_PROCESS),
    "layout.schedule": always(_ONE_PROCESS),
    "layout.servers": always(_ONE_PROCESS),
    "layout.shards": always(_ONE_PROCESS),
    "layout.staleness": always(_ONE_PROCESS),
    "layout.tensor": always(_ONE_PROCESS),
    "learning_rate": fine,
    "lora.rank": fine,
    "lora.targets": _lora_targets,
    "lora.variant": only(
        ("lora",),
        "DoRA without dense temporaries is autotune's own; peft's needs more memory: set "
        "lora.variant to lora, or use_dora=True in the script by hand",
    ),
    "loss_chunks": _chunks,
    "optimizer": _optimizer,
    "optimizer.bits": _own_format("optimizer states", "set optimizer.bits to 32"),
    "optimizer.in_backward": fine,
    "optimizer.kernel": fine,
    "optimizer.offload": always("updates on the host are autotune's own; set it to none"),
    "optimizer.rank": always("projections are autotune's own; set optimizer to adamw"),
    "pool": always("pools are set up by autotune; set pool to shared"),
    "precision": _precision,
    "prune.ffn": _prune_ffn,
    "prune.heads": _prune_heads,
    "prune.importance": always(
        "importance is measured by hooks of autotune's own; set prune.importance to magnitude"
    ),
    "prune.layers": _one_stack("prune.layers"),
    "prune.nm": always(_NO_MASKS),
    "prune.recurrent": always("recurrent models are autotune's own; set it to 0.0"),
    "prune.schedule": always("pruning while training is autotune's own; set it to start"),
    "prune.unstructured": always(_NO_MASKS),
    "qat.bits": always("rounding in training is autotune's own; set qat.bits to 16"),
    "recompute.norms": fine,
    "sequence_length": fine,
    "weight_bits": _NO_PACKING,
    "weight_bits.format": _NO_PACKING,
    "weight_bits.group": _NO_PACKING,
    "weights.storage": always(
        "the script gives all weights memory of their own; set weights.storage to memory"
    ),
    "zero_grad": fine,
}
"""What stands against a value, for every knob."""
