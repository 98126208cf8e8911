"""Frozen weights that stay in their file and are read through a memory map.

Their pages belong to the file: the kernel reads them when they are touched and may drop them when
memory is short, so they need no memory of the process. It helps where a pretrained model is frozen
in the dtype of its file, that is with adapters or frozen layers, on a CPU; weights that train, and
weights on a GPU, are copied out of the map as ever.
"""

from __future__ import annotations

from dataclasses import replace

from autotune.core.context import Context
from autotune.core.domains import Choice
from autotune.core.knob import Knob, Numerics
from autotune.knobs.stages import LOAD, LoadPlan


def _map(plan: LoadPlan, value: str) -> LoadPlan:
    return replace(plan, memory_map=True)


def _needs_frozen_weights(value: str, context: Context) -> str | None:
    if value == "memory":
        return None
    config, model = context.config, context.model
    if context.device.kind != "cpu":
        return (
            "weights on a GPU cannot stay in a file, they are copied to it: "
            "set weights.storage to memory"
        )
    if model.family and not model.pretrained:
        return (
            "the model is trained from scratch, so there is no file to read its weights from: "
            "set weights.storage to memory"
        )
    if config.get("weight_bits", 16) != 16:
        return (
            "quantised weights are packed into memory of their own, not read from a file: "
            "set weights.storage to memory, or weight_bits to 16"
        )
    if config.get("precision", "fp32") in ("bf16", "fp16"):
        return (
            "weights in another dtype than the file's are converted copies: set weights.storage "
            "to memory, or precision to fp32"
        )
    frozen = ("lora.rank", "freeze.layers")
    if not any(config.get(name, 0) for name in frozen) and config.get("freeze.embeddings") != "yes":
        return (
            "all weights train, and training copies them out of their file: set weights.storage "
            "to memory, or freeze weights with lora.rank, freeze.layers or freeze.embeddings"
        )
    return None


WEIGHT_MAPPING = Knob(
    name="weights.storage",
    help="Leaves frozen weights in their file, read through a memory map; the process needs no "
    "memory of its own for them. For adapters on an fp32 model, on a CPU.",
    domain=Choice(("memory", "mapped")),
    neutral="memory",
    leanest="mapped",
    label="{} weights",
    numerics=Numerics.EXACT,
    transforms=(LOAD.do(_map),),
    blocked=_needs_frozen_weights,
    references=("safetensors documentation, memory mapping",),
)
