"""Structured pruning of attention: fewer heads in every block, whole key/value groups at a time.

Models whose configuration can say the head size apart from the width (Llama and its kin, T5) load
again with plain transformers after it. The configurations of others (BERT, GPT-2, OPT, …) cannot
leave heads out: they are saved with silent heads in place of those that were cut, which gives the
same outputs, in a file of the size before pruning (`architectures.Attention.reloads`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from autotune.core.context import Context
from autotune.core.domains import Choice
from autotune.core.knob import Knob, Numerics
from autotune.knobs.architectures import ATTENTION_HEADS, kept_groups
from autotune.knobs.stages import ADAPT, SAVE, Adaptation

if TYPE_CHECKING:
    from torch import nn


def _prune(state: Adaptation, value: float) -> Adaptation:
    from autotune.knobs.pruning import prune_units
    from autotune.knobs.surgery import HEADS

    prune_units(state, HEADS, value)
    return state


def _fill(model: nn.Module, value: float) -> nn.Module:
    from autotune.knobs.surgery import fill_heads

    return fill_heads(model)


def _needs_whole_groups(value: float, context: Context) -> str | None:
    model = context.model
    if value == 0.0 or not model.family:
        return None
    if model.family not in ATTENTION_HEADS:
        return (
            f"the attention layers of the family '{model.family}' are not known: set prune.heads "
            f"to 0.0 (known: {', '.join(sorted(ATTENTION_HEADS))})"
        )
    groups = model.kv_heads or model.heads
    if groups and kept_groups(groups, value) is None:
        return (
            f"prune.heads {value:g} would leave {groups * (1 - value):g} of {groups} key/value "
            "groups, and only whole ones can be kept: set another share, or 0.0"
        )
    return None


PRUNE_HEADS = Knob(
    name="prune.heads",
    help="Share of the attention heads that is cut out of every block.",
    domain=Choice((0.0, 0.25, 0.5)),
    neutral=0.0,
    leanest=0.5,
    label="prune heads {}",
    numerics=Numerics.LOSSY,
    transforms=(ADAPT.do(_prune), SAVE.do(_fill)),
    blocked=_needs_whole_groups,
    references=("Michel et al. 2019, arXiv:1905.10650", "Ma et al. 2023, arXiv:2305.11627"),
)
