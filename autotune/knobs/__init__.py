"""Every technique that autotune can vary, one file each, listed in the order of application.

The order matters where one technique changes what another one finds: weights are pruned before they
are quantised, quantised before adapters are put on them, and blocks are recomputed in whatever form
that leaves them. Within one stage `core.knob.run_stage` applies the knobs in this order.

Importing this package imports no torch: each transform imports what it needs when it is applied.
"""

from __future__ import annotations

from autotune.core.errors import UnknownName
from autotune.core.knob import Knob
from autotune.knobs.accumulation import ACCUMULATION
from autotune.knobs.activation_bits import ACTIVATION_BITS
from autotune.knobs.activation_budget import ACTIVATION_BUDGET
from autotune.knobs.activation_offload import ACTIVATION_OFFLOAD
from autotune.knobs.allocator import ALLOCATOR
from autotune.knobs.attention import ATTENTION
from autotune.knobs.cache_bits import CACHE_BITS
from autotune.knobs.checkpointing import CHECKPOINTING
from autotune.knobs.compile import COMPILE
from autotune.knobs.data_mapping import DATA_MAPPING
from autotune.knobs.deploy_activations import DEPLOY_ACTIVATION_BITS
from autotune.knobs.deploy_bits import DEPLOY_BITS
from autotune.knobs.distill import DISTILL
from autotune.knobs.distill_temperature import DISTILL_TEMPERATURE
from autotune.knobs.distill_weight import DISTILL_WEIGHT
from autotune.knobs.float8 import FLOAT8
from autotune.knobs.freeze_embeddings import FREEZE_EMBEDDINGS
from autotune.knobs.freeze_layers import FREEZE_LAYERS
from autotune.knobs.global_batch import GLOBAL_BATCH
from autotune.knobs.gradients import GRADIENTS
from autotune.knobs.layout_context import LAYOUT_CONTEXT
from autotune.knobs.layout_data import LAYOUT_DATA
from autotune.knobs.layout_pipeline import LAYOUT_PIPELINE
from autotune.knobs.layout_ranks import LAYOUT_RANKS
from autotune.knobs.layout_schedule import LAYOUT_SCHEDULE
from autotune.knobs.layout_servers import LAYOUT_SERVERS
from autotune.knobs.layout_shards import LAYOUT_SHARDS
from autotune.knobs.layout_staleness import LAYOUT_STALENESS
from autotune.knobs.layout_tensor import LAYOUT_TENSOR
from autotune.knobs.learning_rate import LEARNING_RATE
from autotune.knobs.length_batches import LENGTH_BATCHES
from autotune.knobs.lora import LORA_RANK
from autotune.knobs.lora_targets import LORA_TARGETS
from autotune.knobs.lora_variant import LORA_VARIANT
from autotune.knobs.loss_chunks import LOSS_CHUNKS
from autotune.knobs.optimizer import OPTIMIZER
from autotune.knobs.optimizer_bits import OPTIMIZER_BITS
from autotune.knobs.optimizer_in_backward import OPTIMIZER_IN_BACKWARD
from autotune.knobs.optimizer_kernel import OPTIMIZER_KERNEL
from autotune.knobs.optimizer_offload import OPTIMIZER_OFFLOAD
from autotune.knobs.optimizer_rank import OPTIMIZER_RANK
from autotune.knobs.packing import PACKING
from autotune.knobs.pinned import PINNED
from autotune.knobs.pool import POOL
from autotune.knobs.precision import PRECISION
from autotune.knobs.prune_ffn import PRUNE_FFN
from autotune.knobs.prune_heads import PRUNE_HEADS
from autotune.knobs.prune_importance import PRUNE_IMPORTANCE
from autotune.knobs.prune_layers import PRUNE_LAYERS
from autotune.knobs.prune_nm import PRUNE_NM
from autotune.knobs.prune_recurrent import PRUNE_RECURRENT
from autotune.knobs.prune_schedule import PRUNE_SCHEDULE
from autotune.knobs.prune_unstructured import PRUNE_UNSTRUCTURED
from autotune.knobs.qat import QAT_BITS
from autotune.knobs.recompute_norms import RECOMPUTE_NORMS
from autotune.knobs.sequence_length import SEQUENCE_LENGTH
from autotune.knobs.tokenisation import TOKENISATION
from autotune.knobs.weight_bits import WEIGHT_BITS
from autotune.knobs.weight_format import WEIGHT_FORMAT
from autotune.knobs.weight_group import WEIGHT_GROUP
from autotune.knobs.weight_mapping import WEIGHT_MAPPING
from autotune.knobs.zero_grad import ZERO_GRAD

BUILTIN: tuple[Knob, ...] = (
    ALLOCATOR,
    POOL,
    PINNED,
    LAYOUT_RANKS,
    LAYOUT_DATA,
    LAYOUT_SHARDS,
    LAYOUT_TENSOR,
    LAYOUT_PIPELINE,
    LAYOUT_SCHEDULE,
    LAYOUT_CONTEXT,
    LAYOUT_SERVERS,
    LAYOUT_STALENESS,
    TOKENISATION,
    DATA_MAPPING,
    LENGTH_BATCHES,
    PACKING,
    SEQUENCE_LENGTH,
    GLOBAL_BATCH,
    WEIGHT_MAPPING,
    PRECISION,
    FLOAT8,
    ATTENTION,
    DISTILL,
    DISTILL_WEIGHT,
    DISTILL_TEMPERATURE,
    PRUNE_IMPORTANCE,
    PRUNE_SCHEDULE,
    PRUNE_LAYERS,
    PRUNE_FFN,
    PRUNE_HEADS,
    PRUNE_RECURRENT,
    PRUNE_UNSTRUCTURED,
    PRUNE_NM,
    WEIGHT_GROUP,
    WEIGHT_FORMAT,
    WEIGHT_BITS,
    LORA_RANK,
    LORA_TARGETS,
    LORA_VARIANT,
    QAT_BITS,
    FREEZE_LAYERS,
    FREEZE_EMBEDDINGS,
    CHECKPOINTING,
    RECOMPUTE_NORMS,
    COMPILE,
    ACTIVATION_BUDGET,
    OPTIMIZER,
    OPTIMIZER_RANK,
    OPTIMIZER_BITS,
    OPTIMIZER_KERNEL,
    OPTIMIZER_IN_BACKWARD,
    OPTIMIZER_OFFLOAD,
    LEARNING_RATE,
    GRADIENTS,
    ZERO_GRAD,
    ACCUMULATION,
    LOSS_CHUNKS,
    ACTIVATION_BITS,
    ACTIVATION_OFFLOAD,
    DEPLOY_BITS,
    DEPLOY_ACTIVATION_BITS,
    CACHE_BITS,
)
"""All knobs, in order of application."""


def knob(name: str) -> Knob:
    """Return the knob of that name.

    Raises:
        UnknownName: If there is none.
    """
    for candidate in BUILTIN:
        if candidate.name == name:
            return candidate
    raise UnknownName.among(
        "knob", name, (known.name for known in BUILTIN), listing="autotune spaces knobs"
    )
