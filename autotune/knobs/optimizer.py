"""The optimizer family, which decides how many states per parameter are kept.

AdamW keeps two, Lion one, Adafactor a row and a column per matrix, SGD (here without momentum)
none. `knobs/optimizers.py` builds them and has the default learning rates.
"""

from __future__ import annotations

from dataclasses import replace

from autotune.core.domains import Choice
from autotune.core.knob import Knob, Numerics
from autotune.knobs.stages import OPTIMISE, OptimPlan


def _choose_family(plan: OptimPlan, value: str) -> OptimPlan:
    return replace(plan, name=value)


OPTIMIZER = Knob(
    name="optimizer",
    help="The optimizer: adamw keeps 8 bytes per trained parameter, lion 4, adafactor and sgd "
    "next to none.",
    domain=Choice(("adamw", "adafactor", "sgd", "lion")),
    neutral="adamw",
    leanest="sgd",
    numerics=Numerics.LOSSY,
    transforms=(OPTIMISE.do(_choose_family),),
    references=(
        "AdamW: Loshchilov and Hutter 2017, arXiv:1711.05101",
        "Adafactor: Shazeer and Stern 2018, arXiv:1804.04235",
        "Lion: Chen et al. 2023, arXiv:2302.06675",
    ),
)
