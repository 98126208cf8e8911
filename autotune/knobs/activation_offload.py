"""Saved activations leave the device until backward: to host memory, or to a file.

To the host they are copied into page-locked memory, on the stream that computes: on one of its own,
a copy would hold its source for as long as it happens to take, and the peak would depend on timing.
The file has no name, grows by what one forward pass saves, and goes with the last activation in it.
Loss and gradients are the same to the bit.
"""

from __future__ import annotations

from dataclasses import replace

from autotune.core.context import Context
from autotune.core.domains import Choice
from autotune.core.knob import Knob, Numerics
from autotune.knobs.stages import STEP, StepPlan


def _send_away(plan: StepPlan, value: str) -> StepPlan:
    from autotune.knobs.elsewhere import OnHost, Spill, folder_on_disk
    from autotune.knobs.saved_tensors import is_activation, saving

    if value == "host":
        sent = saving(lambda: OnHost, is_activation)
    else:
        folder = folder_on_disk()
        sent = saving(lambda: Spill(folder).write, is_activation)
    return replace(plan, around_forward=(*plan.around_forward, sent))


def _needs_host(value: str, context: Context) -> str | None:
    if value == "host" and context.device.kind == "cpu":
        return (
            "on a CPU the host's memory is the one that is short: set activation_offload to disk "
            "or none"
        )
    return None


ACTIVATION_OFFLOAD = Knob(
    name="activation_offload",
    help="Where activations wait for the backward pass: on the device (none), in host memory, or "
    "on disk; same result, slower by the copies.",
    domain=Choice(("none", "host", "disk")),
    neutral="none",
    leanest="disk",
    label="activations to {}",
    numerics=Numerics.EXACT,
    transforms=(STEP.do(_send_away),),
    blocked=_needs_host,
    references=(
        "Rhu et al. 2016, arXiv:1602.08124 (host)",
        "Rajbhandari et al. 2021, arXiv:2104.07857 (disk)",
    ),
)
