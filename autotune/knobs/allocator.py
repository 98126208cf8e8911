"""Settings of the CUDA caching allocator, which decide how much it reserves beyond what is used.

The allocator cuts blocks out of segments, and a segment is returned only when none of it is used.
Segments that grow (`expandable`) leave fewer holes; a limit on what may be split (`split_128`)
keeps large blocks whole; `collect_0.8` returns unused segments once 80 % of the limit is reserved;
`async` leaves all of it to the driver's own pool. Numbers do not change, reserved memory does.

The backend is chosen while torch loads, so these trials start in a fresh interpreter
(`trial/cold.py`).

References:
    PyTorch documentation, "Optimizing memory usage with PYTORCH_ALLOC_CONF".
"""

from __future__ import annotations

from autotune.core.context import Context
from autotune.core.domains import Choice
from autotune.core.knob import Knob, Numerics
from autotune.knobs.stages import ENVIRONMENT

SETTINGS = {
    "expandable": "expandable_segments:True",
    "split_128": "max_split_size_mb:128",
    "collect_0.8": "garbage_collection_threshold:0.8",
    "async": "backend:cudaMallocAsync",
}
"""What each value says to the allocator."""

VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""The name that torch reads, and the one that it read before 2.9."""


def _configure(variables: dict[str, str], value: str) -> dict[str, str]:
    return variables | dict.fromkeys(VARIABLES, SETTINGS[value])


def needs_cuda(what: str, instead: str, context: Context) -> str | None:
    """Return why something that only CUDA has cannot be used, or None if there is CUDA.

    Args:
        what: The subject of the sentence: `"the caching allocator"`.
        instead: What to set: `"allocator to default"`.
        context: Has the device.
    """
    if context.device.kind == "cuda":
        return None
    return f"{what} exists on CUDA devices only, and this trial runs on the CPU: set {instead}"


def _on_cuda(value: str, context: Context) -> str | None:
    if value == "default":
        return None
    return needs_cuda("the caching allocator", "allocator to default", context)


ALLOCATOR = Knob(
    name="allocator",
    help="How the CUDA caching allocator handles its segments; expandable ones reserve least where "
    "sizes vary. Same result, no effect on a CPU.",
    domain=Choice(("default", *SETTINGS)),
    neutral="default",
    leanest="expandable",
    label="{} allocator",
    numerics=Numerics.EXACT,
    transforms=(ENVIRONMENT.do(_configure),),
    blocked=_on_cuda,
    references=("PyTorch documentation, PYTORCH_ALLOC_CONF",),
)
