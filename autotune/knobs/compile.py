"""The forward and backward pass as compiled graphs.

The compiler sees both passes and decides what is kept between them: products are, what is cheap to
compute again from them is not. `partitioner` does just that and runs torch's own kernels; it needs
no C++ compiler. `inductor` also fuses operators into kernels of its own. `cudagraphs` keeps what
the plain model keeps, records all kernel launches once and replays them. The model is compiled in
place and keeps its class; the first step pays for the compilation. It is evaluated as it was.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from autotune.core.context import Context
from autotune.core.domains import Choice
from autotune.core.knob import Knob, Numerics
from autotune.knobs.architectures import RECURRENT
from autotune.knobs.exclusion import BaseExclusion
from autotune.knobs.stages import COMPRESS, DEPLOY, PARALLELISE, STEP, StepPlan

if TYPE_CHECKING:
    import torch
    from torch import nn

BACKENDS = {
    "partitioner": "aot_eager_decomp_partition",
    "inductor": "inductor",
    "cudagraphs": "cudagraphs",
}
"""Values, and how torch calls the compiler behind them."""

CPP_COMPILERS = ("g++", "clang++", "cl")


@dataclass(frozen=True, slots=True, kw_only=True)
class Exclusion(BaseExclusion):
    """Values of another knob that a compiled model cannot have.

    Attributes:
        backends: The compilers that it holds for.
    """

    backends: tuple[str, ...] = tuple(BACKENDS)


_HOOKS = "hooks on saved tensors do not see what a compiled model keeps"
_CHANGES = "weights that change their form while they train would be compiled again and again"

EXCLUSIONS = (
    Exclusion(
        knob="loss_chunks",
        allowed=(1,),
        because="the loss in pieces does not call the model as a whole, so nothing would be "
        "compiled",
    ),
    Exclusion(knob="activation_bits", allowed=(16,), because=_HOOKS),
    Exclusion(knob="activation_offload", allowed=("none",), because=_HOOKS),
    Exclusion(
        knob="checkpointing",
        allowed=("none", "every_third", "every_other", "full"),
        because="the compiler keeps products by itself",
        backends=("partitioner", "inductor"),
    ),
    Exclusion(
        knob="checkpointing",
        allowed=("none",),
        because="graphs are recorded without computing blocks again",
        backends=("cudagraphs",),
    ),
    Exclusion(
        knob="recompute.norms",
        allowed=("no",),
        because="graphs are recorded without computing norms again",
        backends=("cudagraphs",),
    ),
    Exclusion(
        knob="attention",
        allowed=("sdpa", "eager"),
        because="this attention brings compiled kernels of its own",
    ),
    Exclusion(
        knob="distill",
        allowed=("none",),
        because="a compiled model does not tell what a teacher has to see",
    ),
    Exclusion(
        knob="optimizer.in_backward",
        allowed=("no",),
        because="a compiled backward pass gives all gradients at once",
    ),
    Exclusion(
        knob="float8",
        allowed=("no",),
        because="float8 products are compiled by inductor only",
        backends=("partitioner", "cudagraphs"),
    ),
    Exclusion(
        knob="data.by_length",
        allowed=("no",),
        because="every length of a batch would be compiled for itself",
    ),
    Exclusion(knob="prune.schedule", allowed=("start",), because=_CHANGES),
    Exclusion(knob="prune.unstructured", allowed=(0.0,), because=_CHANGES),
    Exclusion(knob="prune.nm", allowed=("none",), because=_CHANGES),
    Exclusion(
        knob="qat.bits",
        allowed=(16,),
        because="the compiler cannot follow how weights are rounded in each step",
    ),
    Exclusion(
        knob="pool",
        allowed=("shared",),
        because="recorded graphs have a memory pool of their own",
        backends=("cudagraphs",),
    ),
)
"""What would have no effect, or has not been seen to work, in a compiled model."""


def _compile(model: nn.Module, value: str) -> nn.Module:
    model.compile(backend=BACKENDS[value])
    return model


def _as_it_was(model: nn.Module, value: str) -> nn.Module:
    model._compiled_call_impl = None
    return model


def _compile_quietly(plan: StepPlan, value: str) -> StepPlan:
    return replace(plan, around_forward=(*plan.around_forward, _quiet))


@contextmanager
def _quiet(device: torch.device) -> Iterator[None]:
    """Drop what torch warns of in itself as it compiles, in the first forward pass."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        yield


def _cannot_compile(value: str, context: Context) -> str | None:
    if value == "none":
        return None
    if context.model.family in RECURRENT:
        return "the compiler leaves a recurrent layer as it is: set compile to none"
    for exclusion in EXCLUSIONS:
        if value in exclusion.backends and exclusion.meets(context):
            return exclusion.sentence("compile to none")
    return _lacks_compiler(value, context)


def _lacks_compiler(value: str, context: Context) -> str | None:
    if context.device.kind == "cpu":
        if value == "cudagraphs":
            return "CUDA graphs need a CUDA device: set compile to partitioner or none"
        named = os.environ.get("CXX", "")
        if value == "inductor" and not any(map(shutil.which, (named, *CPP_COMPILERS))):
            return (
                f"inductor needs a C++ compiler on a CPU, and none of {', '.join(CPP_COMPILERS)} "
                "is found: set compile to partitioner or none"
            )
    return None


COMPILE = Knob(
    name="compile",
    help="Compiles forward and backward pass together: partitioner keeps less between them, "
    "inductor also fuses operators, cudagraphs replays recorded launches; the first step takes "
    "seconds to minutes longer.",
    domain=Choice(("none", *BACKENDS)),
    neutral="none",
    leanest="partitioner",
    label="compiled by {}",
    numerics=Numerics.CLOSE,
    transforms=(
        PARALLELISE.do(_compile),
        STEP.do(_compile_quietly),
        COMPRESS.do(_as_it_was),
        DEPLOY.do(_as_it_was),
    ),
    blocked=_cannot_compile,
    references=(
        "Ansel et al. 2024, doi:10.1145/3620665.3640366 (PyTorch 2)",
        "https://docs.pytorch.org/docs/stable/torch.compiler.html",
    ),
)
