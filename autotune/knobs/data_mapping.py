"""Where prepared data is while training: in memory, or in its file, read through a memory map.

Pages of a map belong to the file: the kernel reads them when they are touched and may drop them at
any time, so they are no memory that the process needs. Data costs nothing then, whatever its size,
at the price of reading from the disk once it is larger than the memory that is left.
"""

from __future__ import annotations

from dataclasses import replace

from autotune.core.domains import Choice
from autotune.core.knob import Knob, Numerics
from autotune.knobs.features import needs_feature
from autotune.knobs.stages import DATA, DataPlan


def _map(plan: DataPlan, value: str) -> DataPlan:
    return replace(plan, memory_map=True)


DATA_MAPPING = Knob(
    name="data.storage",
    help="Holds prepared data in memory, or leaves it in its file and maps it, so that it takes no "
    "memory of the process; use it when the data is large.",
    domain=Choice(("memory", "mapped")),
    neutral="memory",
    leanest="mapped",
    label="data {}",
    numerics=Numerics.EXACT,
    transforms=(DATA.do(_map),),
    blocked=needs_feature(
        "memory_map",
        neutral="memory",
        reason="this objective holds its data in memory whatever is asked: "
        "set data.storage to memory",
    ),
    references=("mmap(2)",),
)
