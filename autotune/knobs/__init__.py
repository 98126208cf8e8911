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
from autotune.knobs.allocator import ALLOCATOR
from autotune.knobs.attention import ATTENTION
from autotune.knobs.checkpointing import CHECKPOINTING
from autotune.knobs.learning_rate import LEARNING_RATE
from autotune.knobs.lora import LORA_RANK
from autotune.knobs.loss_chunks import LOSS_CHUNKS
from autotune.knobs.optimizer import OPTIMIZER
from autotune.knobs.optimizer_bits import OPTIMIZER_BITS
from autotune.knobs.pinned import PINNED
from autotune.knobs.pool import POOL
from autotune.knobs.precision import PRECISION
from autotune.knobs.prune_ffn import PRUNE_FFN
from autotune.knobs.prune_heads import PRUNE_HEADS
from autotune.knobs.weight_bits import WEIGHT_BITS
from autotune.knobs.weight_mapping import WEIGHT_MAPPING

BUILTIN: tuple[Knob, ...] = (
    ALLOCATOR,
    POOL,
    PINNED,
    WEIGHT_MAPPING,
    PRECISION,
    ATTENTION,
    PRUNE_FFN,
    PRUNE_HEADS,
    WEIGHT_BITS,
    LORA_RANK,
    CHECKPOINTING,
    OPTIMIZER,
    OPTIMIZER_BITS,
    LEARNING_RATE,
    ACCUMULATION,
    LOSS_CHUNKS,
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
