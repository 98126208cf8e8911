"""Norms are computed again in backward, and keep nothing but their input.

A norm that is written out in several operators, as RMS norms of transformers are, keeps an fp32
copy of its input and every value in between: three or four tensors of the size of the residual
stream, to save the cheapest arithmetic of a block. The fused layer norm of torch keeps its input
and two numbers per token already, so on models that have only this one there is nothing to gain.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from autotune.core.context import Context
from autotune.core.domains import Choice
from autotune.core.errors import ModelError
from autotune.core.knob import Knob, Numerics
from autotune.knobs.architectures import RECURRENT
from autotune.knobs.stages import ADAPT, DEPLOY, on_model

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

FUSED_ONLY = frozenset(
    {"gpt2", "opt", "gpt_neox", "bert", "roberta", "distilbert", "electra", "bart", "whisper",
     "vit"}
)  # fmt: skip
"""Families whose norms all keep their input only, as they are."""


def find_norms(model: nn.Module) -> list[nn.Module]:
    """Return every norm of a model, by the name of its class: `LayerNorm`, `LlamaRMSNorm`."""
    return [module for module in model.modules() if type(module).__name__.endswith("Norm")]


def _recompute_norms(model: nn.Module, value: str) -> nn.Module:
    norms = find_norms(model)
    if not norms:
        raise ModelError(
            f"{type(model).__name__} has no norms that could be computed again",
            help="set recompute.norms to no",
        )
    for norm in norms:
        vars(norm)["forward"] = partial(_recomputed, norm, norm.forward)
    return model


def _recomputed(norm: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    from torch.utils.checkpoint import checkpoint

    if not norm.training:
        return forward(*args, **kwargs)
    # Nothing in a norm is random, so no state of a generator needs to be kept.
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


def _keep_again(model: nn.Module, value: str) -> nn.Module:
    for norm in find_norms(model):
        vars(norm).pop("forward", None)
    return model


def _pays(value: str, context: Context) -> str | None:
    if value == "no":
        return None
    if context.config.get("checkpointing", "none") in ("full", "selective"):
        return (
            "checkpointing computes the norms of every block again already: set recompute.norms "
            "to no, or checkpointing to none or every_other"
        )
    if context.model.family in RECURRENT:
        return "a recurrent model has no norms to compute again: set recompute.norms to no"
    if context.model.family in FUSED_ONLY:
        return (
            f"norms of the family '{context.model.family}' are fused and keep their input only "
            "already: set recompute.norms to no"
        )
    return None


RECOMPUTE_NORMS = Knob(
    name="recompute.norms",
    help="Computes norms again in the backward pass, so that they keep their input only; pays "
    "where norms are written out in several operators, such as RMS norms.",
    domain=Choice(("no", "yes")),
    neutral="no",
    leanest="yes",
    label="recompute norms: {}",
    numerics=Numerics.EXACT,
    transforms=(ADAPT.do(on_model(_recompute_norms)), DEPLOY.do(_keep_again)),
    blocked=_pays,
    references=(
        "Chen et al. 2016, arXiv:1604.06174",
        "Korthikanti et al. 2022, arXiv:2205.05198 (recomputing what is cheap)",
    ),
)
