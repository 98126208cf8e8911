"""The typed moments of a trial, in order, and the state that each of them may change.

| stage | state | exists by then |
|---|---|---|
| ENVIRONMENT | environment variables | nothing; torch is not imported |
| LAYOUT | LayoutPlan | the devices; the ranks are made by it |
| DATA | DataPlan | the dataset |
| LOAD | LoadPlan | the request for a model |
| ADAPT | Adaptation | the model, on the host |
| PARALLELISE | the model, on its device | the adapted model |
| OPTIMISE | OptimPlan | parameters |
| STEP | StepPlan | everything |
| COMPRESS | the model | a trained model, about to be evaluated |
| EVALUATE | EvalPlan | the model as it will be deployed |
| DEPLOY | the model | a trained and evaluated model |
| SAVE | the model | a dense model of the library's own layers, about to be written to a folder |

Plans are frozen: a transform returns a changed copy (`dataclasses.replace`). They stand here, below
the trial that carries them out, because knobs change them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from autotune.core.knob import Stage

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from autotune.knobs.distillation import Distillation


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutPlan:
    """How one training is laid out over ranks.

    Attributes:
        ranks: Processes, with one device each.
        data: What ranks that see different sequences share: `"ddp"` nothing, `"zero1"` optimizer
            states, `"zero2"` gradients too, `"zero3"` weights too; `"server"`: all of them are
            with servers.
        shards: Ranks that share one copy, for `"zero2"` and `"zero3"`; 0 for all of them.
        tensor: Ranks that share each matrix.
        pipeline: Ranks that have some of the blocks each.
        schedule: Order of a pipeline's micro-batches: `"1f1b"` or `"gpipe"`.
        context: Ranks that have a part of each sequence.
        servers: Ranks that only hold and update parameters, for `"server"`.
        staleness: Steps that a worker may be ahead of the slowest one, for `"server"`.
    """

    ranks: int = 1
    data: str = "ddp"
    shards: int = 0
    tensor: int = 1
    pipeline: int = 1
    schedule: str = "1f1b"
    context: int = 1
    servers: int = 1
    staleness: int = 0

    @property
    def replicas(self) -> int:
        """Ranks, or groups of ranks, that see different sequences."""
        if self.data == "server":
            return max(1, self.ranks - self.servers)
        return max(1, self.ranks // (self.tensor * self.pipeline * self.context))

    @property
    def sharded(self) -> bool:
        """Whether no single rank has all weights."""
        return self.ranks > 1 and (
            self.tensor > 1 or self.pipeline > 1 or self.data in ("zero2", "zero3")
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DataPlan:
    """How batches are made.

    Attributes:
        sequence_length: Tokens per sequence that is trained on.
        global_batch: Sequences per optimizer step.
        by_length: Sequences of similar length share a batch, which is as long as its longest.
        documents: Each document has rows of its own, padded, in place of one packed stream.
        on_the_fly: Texts become tokens when a batch needs them, and are not kept.
        memory_map: Prepared arrays stay in their files and are read through a memory map.
    """

    sequence_length: int
    global_batch: int
    by_length: bool = False
    documents: bool = False
    on_the_fly: bool = False
    memory_map: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPlan:
    """How the model is asked for.

    Attributes:
        dtype: Name of the torch dtype of weights: `"float32"`.
        attention: Attention kernel, as transformers spells it: `"sdpa"`, `"eager"`.
        memory_map: Weights that do not train stay in their file and are read through a memory map.
        shapes_only: Weights are not read; only their shapes and dtypes matter, for a rehearsal.
        layers: With `shapes_only`, how many blocks are built, of encoder and decoder each, in place
            of those that the model has; 0 for all of them.
    """

    dtype: str = "float32"
    attention: str = "sdpa"
    memory_map: bool = False
    shapes_only: bool = False
    layers: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Adaptation:
    """A model that is being adapted, and what adapting it may look at.

    Attributes:
        model: On the host, in training mode.
        losses: Yields the loss of a few small training batches under a model it is given, each
            with its graph, so that importance can be measured; None where there is no data.
        named_teacher: Builds the teacher that the user named; None if none was.
        importance: What decides which units are pruned: `"magnitude"`, `"taylor"`, `"activation"`.
        gradual: Whether pruning happens while training, not before.
        distillation: What the model also learns from; None if it has no teacher.
    """

    model: nn.Module
    losses: Callable[[nn.Module], Iterator[Tensor]] | None = None
    named_teacher: Callable[[], nn.Module] | None = None
    importance: str = "magnitude"
    gradual: bool = False
    distillation: Distillation | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimPlan:
    """Which optimizer is made.

    Attributes:
        name: `"adamw"`, `"adafactor"`, `"sgd"`, `"lion"`, `"muon"`, `"galore"`, `"apollo"`.
        state_bits: Bits per value of its states.
        rank: Of the projections of `"galore"` and `"apollo"`; 0 for a quarter of each matrix.
        rate_scale: Factor on the learning rate that the optimizer's default is multiplied by.
        adapters: Whether only adapters are trained, which take a higher rate.
        kernel: How many tensors one update touches: `"fused"`, `"foreach"`, `"loop"`.
        in_backward: Each parameter is updated, and its gradient dropped, as soon as that is there.
        offload: States live on the host and the update happens there.
        gradient_dtype: Name of the torch dtype of gradients; None for that of the parameter.
    """

    name: str = "adamw"
    state_bits: int = 32
    rank: int = 0
    rate_scale: float = 1.0
    adapters: bool = False
    kernel: str = "fused"
    in_backward: bool = False
    offload: bool = False
    gradient_dtype: str | None = None


Around: TypeAlias = "Callable[[torch.device], AbstractContextManager[Any]]"
"""Opens a context, for a device, around every forward pass of a training step."""

AfterStep: TypeAlias = "Callable[[nn.Module, float], None]"
"""Told the model and the share of the training that is done, after every optimizer step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """How one optimizer step is carried out.

    Attributes:
        accumulation: Micro-batches per optimizer step; the global batch stays as it is.
        loss_chunks: Pieces in which logits and loss are computed; 1 is all at once.
        around_forward: Contexts around every forward pass, first one outermost.
        after_step: Told of every optimizer step.
        loss_scaling: The loss is scaled up before backward, for gradients in 16 bits.
        keep_gradients: Gradients are set to zero after a step, and their memory is kept.
        pinned: Batches are copied to the device from page-locked memory.
    """

    accumulation: int = 1
    loss_chunks: int = 1
    around_forward: tuple[Around, ...] = ()
    after_step: tuple[AfterStep, ...] = ()
    loss_scaling: bool = False
    keep_gradients: bool = False
    pinned: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalPlan:
    """How a trained model is evaluated.

    Attributes:
        batch: Sequences per forward pass.
        loss_chunks: As in `StepPlan`.
        around_forward: Contexts around the evaluation, first one outermost.
        stream: Sequences are read piece by piece with a key/value cache, as in generation.
        cache_bits: Bits per value of that cache.
    """

    batch: int = 16
    loss_chunks: int = 1
    around_forward: tuple[Around, ...] = ()
    stream: bool = False
    cache_bits: int = 16


ENVIRONMENT: Stage[dict[str, str]] = Stage(0, "environment")
LAYOUT: Stage[LayoutPlan] = Stage(1, "layout")
DATA: Stage[DataPlan] = Stage(2, "data")
LOAD: Stage[LoadPlan] = Stage(3, "load")
ADAPT: Stage[Adaptation] = Stage(4, "adapt")
PARALLELISE: Stage[nn.Module] = Stage(5, "parallelise")
OPTIMISE: Stage[OptimPlan] = Stage(6, "optimise")
STEP: Stage[StepPlan] = Stage(7, "step")
COMPRESS: Stage[nn.Module] = Stage(8, "compress")
EVALUATE: Stage[EvalPlan] = Stage(9, "evaluate")
DEPLOY: Stage[nn.Module] = Stage(10, "deploy")
SAVE: Stage[nn.Module] = Stage(11, "save")


def on_model(
    change: Callable[[nn.Module, Any], nn.Module],
) -> Callable[[Adaptation, Any], Adaptation]:
    """Turn a function of the model alone into one for `ADAPT`."""

    def apply(state: Adaptation, value: Any) -> Adaptation:
        return replace(state, model=change(state.model, value))

    return apply
