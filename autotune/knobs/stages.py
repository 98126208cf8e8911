"""The typed moments of a trial, in order, and the state that each of them may change.

| stage | state | exists by then |
|---|---|---|
| ENVIRONMENT | environment variables | nothing on the device |
| DATA | DataPlan | the dataset |
| LOAD | LoadPlan | the request for a model |
| ADAPT | the model, on the host | the model |
| PARALLELISE | the model, on its device | the adapted model |
| OPTIMISE | OptimPlan | parameters |
| STEP | StepPlan | everything |
| EVALUATE | EvalPlan | a trained model |
| DEPLOY | the model | a trained and evaluated model |

Plans are frozen: a transform returns a changed copy (`dataclasses.replace`). They stand here, below
the trial that carries them out, because knobs change them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from autotune.core.knob import Stage

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class DataPlan:
    """How batches are made.

    Attributes:
        sequence_length: Tokens per sequence.
        global_batch: Sequences per optimizer step.
    """

    sequence_length: int
    global_batch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPlan:
    """How the model is asked for.

    Attributes:
        dtype: Name of the torch dtype of weights: `"float32"`.
        attention: Attention kernel, as transformers spells it: `"sdpa"`, `"eager"`.
    """

    dtype: str = "float32"
    attention: str = "sdpa"


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimPlan:
    """Which optimizer is made.

    Attributes:
        name: `"adamw"`, `"adafactor"`, `"sgd"`, `"lion"`.
        state_bits: Bits per value of its states.
        rate_scale: Factor on the learning rate that the optimizer's default is multiplied by.
        adapters: Whether only adapters are trained, which take a higher rate.
    """

    name: str = "adamw"
    state_bits: int = 32
    rate_scale: float = 1.0
    adapters: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """How one optimizer step is carried out.

    Attributes:
        accumulation: Micro-batches per optimizer step; the global batch stays as it is.
        loss_chunks: Pieces in which logits and loss are computed; 1 is all at once.
    """

    accumulation: int = 1
    loss_chunks: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalPlan:
    """How a trained model is evaluated.

    Attributes:
        batch: Sequences per forward pass.
        loss_chunks: As in `StepPlan`.
    """

    batch: int = 16
    loss_chunks: int = 1


ENVIRONMENT: Stage[dict[str, str]] = Stage(0, "environment")
DATA: Stage[DataPlan] = Stage(1, "data")
LOAD: Stage[LoadPlan] = Stage(2, "load")
ADAPT: Stage[nn.Module] = Stage(3, "adapt")
PARALLELISE: Stage[nn.Module] = Stage(4, "parallelise")
OPTIMISE: Stage[OptimPlan] = Stage(5, "optimise")
STEP: Stage[StepPlan] = Stage(6, "step")
EVALUATE: Stage[EvalPlan] = Stage(7, "evaluate")
DEPLOY: Stage[nn.Module] = Stage(8, "deploy")
