"""Numbers that the settings of a trial come to: batches, steps, lengths, rates.

Every target spells them differently; here they are computed once, by the same functions that the
trial used.
"""

from __future__ import annotations

from dataclasses import dataclass

from autotune.core.knob import run_stage
from autotune.export.base import Subject
from autotune.knobs import BUILTIN
from autotune.knobs.stages import DATA, LAYOUT, OPTIMISE, DataPlan, LayoutPlan, OptimPlan

WARMUP_SHARE = 0.1
"""Share of the steps in which the rate rises; then it falls to zero, both linearly."""

MOST_NORM = 1.0
"""Norm that the gradient of all weights is clipped to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """What a training loop needs to know.

    Attributes:
        batch: Sequences per optimizer step.
        accumulation: Micro-batches that they are split into.
        micro: Sequences in a micro-batch of one rank.
        layout: How ranks share the training.
        steps: Optimizer steps.
        warmup: Steps in which the rate rises.
        length: Tokens of a sequence in training.
        rate: The highest learning rate.
        decay: Weight decay of matrices.
        adapters: Factor on the rate where adapters are trained.
        seed: Of initialisation and order of data.
    """

    batch: int
    accumulation: int
    micro: int
    layout: LayoutPlan
    steps: int
    warmup: int
    length: int
    rate: float
    decay: float
    adapters: float
    seed: int

    @classmethod
    def of(cls, subject: Subject) -> Numbers:
        """Compute them for a trial."""
        from autotune.knobs.optimizers import FAMILIES, learning_rate

        workload, config = subject.workload, subject.record.config
        asked = DataPlan(
            sequence_length=workload.sequence_length, global_batch=workload.global_batch
        )
        data = run_stage(DATA, asked, BUILTIN, config)
        optim = run_stage(OPTIMISE, OptimPlan(), BUILTIN, config)
        family = FAMILIES[optim.name]
        accumulation = int(subject.number("accumulation"))
        layout = run_stage(LAYOUT, LayoutPlan(), BUILTIN, config)
        steps = max(1, workload.steps * workload.global_batch // data.global_batch)
        return cls(
            batch=data.global_batch,
            accumulation=accumulation,
            micro=-(-data.global_batch // (accumulation * layout.replicas)),
            layout=layout,
            steps=steps,
            warmup=max(1, round(WARMUP_SHARE * steps)),
            length=data.sequence_length,
            rate=float(f"{learning_rate(optim, workload.learning_rate):.10g}"),
            decay=family.decay,
            adapters=family.adapters if optim.adapters else 1.0,
            seed=workload.seed,
        )
