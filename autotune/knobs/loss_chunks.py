"""The loss in pieces: logits of all tokens never exist at once.

With a vocabulary of 50 000, logits and their gradient are often the largest tensors of a training
step. `knobs/chunked_loss.py` has the arithmetic; objectives carry the plan out.
"""

from __future__ import annotations

from dataclasses import replace

from autotune.core.context import Context
from autotune.core.domains import Choice
from autotune.core.knob import Knob, Numerics
from autotune.knobs.stages import EVALUATE, STEP, EvalPlan, StepPlan

CHANGES_LOGITS = frozenset(
    {"cohere", "cohere2", "gemma2", "gemma3n", "gemma3n_text", "granite", "granitemoe"}
)
"""Families that scale or cap logits after the output layer, which a plain product would miss."""


def _chunk_training(plan: StepPlan, value: int) -> StepPlan:
    return replace(plan, loss_chunks=value)


def _chunk_evaluation(plan: EvalPlan, value: int) -> EvalPlan:
    return replace(plan, loss_chunks=value)


def _needs_vocabulary(value: int, context: Context) -> str | None:
    model = context.model
    if value == 1 or not model.family:
        return None
    if model.vocab == 0:
        return (
            "the loss is not over a vocabulary here, so its logits are small already: "
            "set loss_chunks to 1"
        )
    if model.family in CHANGES_LOGITS:
        return (
            f"models of the family '{model.family}' scale or cap their logits after the output "
            "layer, which the loss in pieces does not: set loss_chunks to 1"
        )
    return None


LOSS_CHUNKS = Knob(
    name="loss_chunks",
    help="Computes logits and loss in that many pieces; use it when the vocabulary is large.",
    domain=Choice((1, 4, 16)),
    neutral=1,
    leanest=16,
    label="loss in {} chunks",
    numerics=Numerics.EXACT,
    transforms=(STEP.do(_chunk_training), EVALUATE.do(_chunk_evaluation)),
    blocked=_needs_vocabulary,
    references=("Wijmans et al. 2024, arXiv:2411.09009",),
)
