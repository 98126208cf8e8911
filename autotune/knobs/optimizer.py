"""The optimizer family, which decides how many states per parameter are kept.

| family | fp32 states of a matrix `(m, n)` | where |
|---|---|---|
| adamw | two of `m n` | all |
| lion | one of `m n` | all |
| muon | one of `m n` | matrices inside blocks; AdamW elsewhere |
| galore | two of `r n`, one of `m r` | the same |
| apollo | two of `r n` | the same |
| adafactor | a row and a column | all |
| sgd, without momentum | none | all |

`knobs/optimizers.py` builds them and has the default learning rates; `optimizer.rank` sets `r`.
"""

from __future__ import annotations

from dataclasses import replace

from autotune.core.context import Context
from autotune.core.domains import Choice
from autotune.core.knob import Knob, Numerics
from autotune.knobs.architectures import RECURRENT
from autotune.knobs.stages import OPTIMISE, OptimPlan

WITH_PROJECTIONS = ("galore", "apollo")
FOR_BLOCKS = ("muon", *WITH_PROJECTIONS)


def _choose_family(plan: OptimPlan, value: str) -> OptimPlan:
    return replace(plan, name=value)


def _needs_wide_matrices(value: str, context: Context) -> str | None:
    if value in FOR_BLOCKS and context.model.family in RECURRENT:
        return (
            f"{value} is for the matrices inside blocks, and models of the family "
            f"'{context.model.family}' have none: set optimizer to adamw, lion or adafactor"
        )
    if value in WITH_PROJECTIONS and context.config.get("lora.rank", 0):
        return (
            f"{value} projects gradients to a low rank, and those of adapters are of a low rank "
            "already: set optimizer to adamw, or lora.rank to 0"
        )
    return None


OPTIMIZER = Knob(
    name="optimizer",
    help="The optimizer: adamw keeps 8 bytes per trained parameter, lion 4, muon 4 to 5, galore "
    "and apollo 3 to 4 at their default rank, adafactor and sgd next to none.",
    domain=Choice(("adamw", "adafactor", "sgd", "lion", "muon", "galore", "apollo")),
    neutral="adamw",
    leanest="sgd",
    numerics=Numerics.LOSSY,
    transforms=(OPTIMISE.do(_choose_family),),
    blocked=_needs_wide_matrices,
    references=(
        "AdamW: Loshchilov and Hutter 2017, arXiv:1711.05101",
        "Adafactor: Shazeer and Stern 2018, arXiv:1804.04235",
        "Lion: Chen et al. 2023, arXiv:2302.06675",
        "Muon: Jordan 2024; Liu et al. 2025, arXiv:2502.16982",
        "GaLore: Zhao et al. 2024, arXiv:2403.03507",
        "APOLLO: Zhu et al. 2024, arXiv:2412.05270",
    ),
)
