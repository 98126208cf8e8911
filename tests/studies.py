"""Small runs to store and to replay: knobs, facts, specs, and a trial for every way to end."""

from __future__ import annotations

from collections.abc import Mapping

from autotune.core.config import Config
from autotune.core.context import ModelFacts
from autotune.core.domains import Choice, Float, Int, Value
from autotune.core.knob import Knob, Numerics
from autotune.core.outcome import (
    Completed,
    Crashed,
    Diverged,
    Measurement,
    Outcome,
    OutOfMemory,
    Peak,
    PeakKind,
    Phase,
    Score,
    Stopped,
    TimedOut,
)
from autotune.core.record import Origin, TrialRecord
from autotune.core.workload import Metric, RunSpec, Workload, WorkloadFacts

MIB = 2**20
LIMIT = 500 * MIB
STARTED = 1_000_000.0
METRIC = Metric(name="accuracy", maximize=True)
KNOBS = (
    Knob(
        name="precision",
        help="Number format.",
        domain=Choice(("fp32", "bf16")),
        neutral="fp32",
        leanest="bf16",
        numerics=Numerics.LOSSY,
        transforms=(),
    ),
    Knob(
        name="chunks",
        help="Pieces.",
        domain=Int(1, 16),
        neutral=1,
        leanest=16,
        label="chunks {}",
        numerics=Numerics.EXACT,
        transforms=(),
    ),
    Knob(
        name="rate",
        help="Learning rate factor.",
        domain=Float(1e-5, 10.0, log=True),
        neutral=1.0,
        leanest=1.0,
        label="rate {}",
        numerics=Numerics.LOSSY,
        transforms=(),
    ),
)


def make_facts() -> WorkloadFacts:
    return WorkloadFacts(
        workload=Workload(objective="text_classification", steps=40, global_batch=8),
        model=ModelFacts(name="tiny", family="bert", layers=2, parameters=10**10),
        data="12 sentences",
        data_fingerprint="abc",
        metrics=(METRIC, Metric(name="loss", maximize=False)),
    )


def make_spec(name: str = "first", *, trials: int = 10) -> RunSpec:
    return RunSpec(
        name=name,
        facts=make_facts(),
        space="default",
        space_source="knobs: {}\n",
        overrides={"precision": "bf16"},
        budget_bytes=600 * MIB,
        headroom=0.1,
        sampler="tpe",
        seed=7,
        trials=trials,
        time_limit=None,
        trial_limit=60.0,
        jobs=1,
        threads=1,
        device={
            "kind": "cuda",
            "index": 1,
            "name": "card",
            "total_bytes": 16 * 10**9,
            "free_bytes": 15 * 10**9,
            "cores": 4,
            "bf16": True,
            "capability": (8, 6),
        },
        versions={"torch": "2.13.0"},
    )


def measured(mib: int = 100, *, steps: int = 40) -> Measurement:
    return Measurement(
        peaks=tuple(
            Peak(phase=phase, kind=kind, bytes=mib * MIB + extra, rank=rank)
            for phase in Phase
            for kind, extra in ((PeakKind.ALLOCATED, 0), (PeakKind.RESIDENT, 5 * MIB))
            for rank in (0, 1)
        ),
        anatomy={"weights": mib * MIB // 2, "gradients": mib * MIB // 4},
        step_seconds=0.25,
        throughput=512.5,
        steps=steps,
        parameters=5 * 10**9,
        trained_parameters=10**9,
    )


def completed(accuracy: float = 0.9, mib: int = 100, seconds: float = 10.0) -> Completed:
    return Completed(
        seconds=seconds,
        measurement=measured(mib),
        scores={
            "accuracy": Score(value=accuracy, stderr=0.01, n=200),
            "loss": Score(value=0.123456789012345678),
        },
    )


def trial(
    number: int,
    config: Mapping[str, Value] | None = None,
    outcome: Outcome | None = None,
    *,
    on_front: bool = False,
) -> TrialRecord:
    return TrialRecord(
        number=number,
        config=Config(config or {}, KNOBS),
        origin=Origin.BASELINE if number == 0 else Origin.SAMPLER,
        started=STARTED + 100.0 * number,
        outcome=outcome,
        limit_bytes=LIMIT,
        on_front=on_front,
    )


ENDS: tuple[Outcome, ...] = (
    completed(),
    completed(accuracy=float("inf"), mib=600),
    OutOfMemory(
        seconds=3.5,
        measurement=measured(480, steps=0),
        phase=Phase.FIRST,
        step=0,
        needed_bytes=5 * 10**9,
        message="cannot allocate",
    ),
    Stopped(seconds=1.0, step=4, reason="enough"),
    Diverged(seconds=2.0, step=9, loss="nan"),
    Crashed(seconds=1.5, signal="SIGSEGV"),
    Crashed(seconds=1.5, exit_code=1, error="ValueError: [bf16] é", traceback="Traceback\n  …"),
    TimedOut(seconds=60.0, limit_seconds=60.0, phase="steady"),
)
"""One of every kind, with what is awkward to store."""
