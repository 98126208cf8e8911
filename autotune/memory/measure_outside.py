"""Measure what a process holds on a CUDA device beside its tensors: run by `autotune doctor`.

    python -m autotune.memory.measure_outside cuda:0

One small training step, measured by the meter of the trials themselves (`trial/measure.py`), in
this process, which has done nothing else. Prints a JSON object with `context_bytes`, what NVML
shows beyond the segments of the caching allocator, and `workspace_bytes`, what the allocator still
holds when every tensor of the step is gone.
"""

from __future__ import annotations

import gc
import json
import sys

import torch
from torch import nn

from autotune.core.context import Device
from autotune.core.outcome import PeakKind, Phase
from autotune.trial.measure import make_meter

WIDTH, ROWS = 256, 64


def measure(index: int) -> dict[str, int]:
    """Measure this process on a device.

    Args:
        index: Which CUDA device.

    Returns:
        `context_bytes` and `workspace_bytes`.
    """
    device = Device(kind="cuda", index=index)
    meter = make_meter(device)
    with meter.instrument(Phase.STEADY, 0, lambda: 0):
        small_step(torch.device(device.label))
    peaks = {peak.kind: peak.bytes for peak in meter.peaks()}
    gc.collect()
    return {
        "context_bytes": peaks[PeakKind.DEVICE] - peaks[PeakKind.RESERVED],
        "workspace_bytes": torch.cuda.memory_allocated(index),
    }


def small_step(device: torch.device) -> None:
    """Train for one step with what nearly every training uses: products, a norm, AdamW, bf16."""
    model = nn.Sequential(
        nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH)
    ).to(device)
    optimizer = torch.optim.AdamW(model.parameters())
    for dtype in (torch.float32, torch.bfloat16):
        with torch.autocast(device.type, dtype, enabled=dtype is not torch.float32):
            scores = model(torch.zeros(ROWS, WIDTH, device=device))
            loss = nn.functional.cross_entropy(scores, scores.detach().argmax(dim=-1))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


if __name__ == "__main__":
    print(json.dumps(measure(torch.device(sys.argv[1]).index or 0)))
