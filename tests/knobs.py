"""Four small knobs and what tests of spaces and searches need around them."""

from __future__ import annotations

from autotune.core.config import Config
from autotune.core.context import Context
from autotune.core.domains import Choice, Float, Int
from autotune.core.knob import Knob, Numerics
from autotune.core.outcome import Completed, Measurement, OutOfMemory, Peak, PeakKind, Phase, Score
from autotune.core.record import TrialRecord
from autotune.core.workload import Metric

LOSS = Metric(name="loss", maximize=False)
ACCURACY = Metric(name="accuracy", maximize=True)


def _knob(name, domain, neutral, leanest, label="{}", **more):
    more.setdefault("numerics", Numerics.LOSSY)
    return Knob(
        name=name, help="", domain=domain, neutral=neutral, leanest=leanest, label=label,
        transforms=(), **more,
    )  # fmt: skip


def _share_needs_blocks(value, context: Context):
    return "cannot be combined with checkpointing=full" if (
        context.config["checkpointing"] == "full" and value == 0.75
    ) else None  # fmt: skip


SHARE = _knob(
    "share", Choice((0.0, 0.25, 0.5, 0.75)), 0.0, 0.75, "share {}", blocked=_share_needs_blocks
)
CHECKPOINTING = _knob(
    "checkpointing", Choice(("none", "every_other", "full")), "none", "full", "ckpt {}",
    numerics=Numerics.EXACT,
)  # fmt: skip
BITS = _knob("weight_bits", Choice((16, 8, 4)), 16, 4, "{}-bit")
RANK = _knob("lora.rank", Choice((0, 4, 8, 16)), 0, 4, "lora {}")
CHUNKS = _knob("chunks", Int(1, 16), 1, 16, "chunks {}", numerics=Numerics.EXACT)
RATE = _knob("rate", Float(0.1, 10.0, log=True), 1.0, 1.0, "rate {}")

KNOBS = (SHARE, CHECKPOINTING, BITS, RANK, CHUNKS, RATE)


def completed(number, config=None, *, loss=1.0, peak=2**30, limit=2**40, metric=LOSS):
    """A record of a trial that trained to the end."""
    peaks = (Peak(phase=Phase.STEADY, kind=PeakKind.ALLOCATED, bytes=int(peak)),)
    outcome = Completed(
        seconds=1.0,
        measurement=Measurement(peaks=peaks, steps=3),
        scores={metric.name: Score(value=loss, n=10)},
    )
    return TrialRecord(
        number=number, config=config or Config({}), outcome=outcome, limit_bytes=limit
    )


def out_of_memory(number, config=None, *, needed=2**31, limit=2**30):
    """A record of a trial that ran out of memory."""
    outcome = OutOfMemory(seconds=1.0, phase=Phase.STEADY, step=0, needed_bytes=needed)
    return TrialRecord(
        number=number, config=config or Config({}), outcome=outcome, limit_bytes=limit
    )


def ended(number, outcome, config=None, *, limit=2**30):
    """A record of a trial with any outcome."""
    return TrialRecord(
        number=number, config=config or Config({}), outcome=outcome, limit_bytes=limit
    )
