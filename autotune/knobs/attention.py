"""The attention kernel: fused (sdpa, flash, flex) or written out (eager).

A fused kernel never stores the matrix of attention scores, `(batch, heads, tokens, tokens)`. Which
one sdpa runs is torch's choice for the device; flash is the package `flash_attn`, and flex is
compiled for the mask of the model.
"""

from __future__ import annotations

from dataclasses import replace

from autotune.core.context import Context
from autotune.core.domains import Choice
from autotune.core.knob import Knob, Numerics
from autotune.knobs.architectures import RECURRENT
from autotune.knobs.stages import LOAD, LoadPlan

SPELLED = {"flash": "flash_attention_2", "flex": "flex_attention"}
"""Kernels that transformers calls otherwise."""

WITHOUT = {
    "flash": frozenset({"t5", "mt5", "umt5", "longt5", "deberta", "deberta-v2"}),
    "flex": frozenset({"gpt2", "longt5", "deberta", "deberta-v2"}),
}
"""Families for which transformers has no such kernel."""


def _choose_kernel(plan: LoadPlan, value: str) -> LoadPlan:
    return replace(plan, attention=SPELLED.get(value, value))


def _needs_kernel(value: str, context: Context) -> str | None:
    family = context.model.family
    if value != "sdpa" and family in RECURRENT:
        return "a recurrent model has no attention kernel to choose: set attention to sdpa"
    if value not in SPELLED:
        return None
    if context.device.kind == "cpu":
        return f"{value} attention cannot be trained on a CPU: set attention to sdpa or eager"
    if family in WITHOUT[value]:
        return (
            f"transformers has no {value} attention for models of the family '{family}': set "
            "attention to sdpa or eager"
        )
    return _needs_flash(context) if value == "flash" else None


def _needs_flash(context: Context) -> str | None:
    device = context.device
    if device.capability is not None and device.capability < (8, 0):
        return (
            f"{device.name or device.label} has compute capability "
            f"{device.capability[0]}.{device.capability[1]}, and flash attention needs 8.0: "
            "set attention to sdpa"
        )
    if context.config.get("precision", "fp32") in ("fp32", "tf32"):
        return (
            "flash attention computes in 16 bits only: set precision to bf16 or bf16_mixed, or "
            "attention to sdpa"
        )
    return context.lacks("flash_attn", "flash")


ATTENTION = Knob(
    name="attention",
    help="The attention kernel: sdpa, flash and flex are fused and store no score matrix, eager is "
    "for models and devices where a fused kernel is slower.",
    domain=Choice(("sdpa", "eager", "flash", "flex")),
    neutral="sdpa",
    leanest="sdpa",
    label="{} attention",
    numerics=Numerics.EXACT,
    transforms=(LOAD.do(_choose_kernel),),
    blocked=_needs_kernel,
    references=(
        "Dao et al. 2022, arXiv:2205.14135",
        "Dao 2023, arXiv:2307.08691 (flash)",
        "Dong et al. 2024, arXiv:2412.05496 (flex)",
        "Rabe and Staats 2021, arXiv:2112.05682",
    ),
)
