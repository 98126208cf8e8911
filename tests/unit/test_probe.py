"""Probes: one trial's first steps, waited for, whatever comes of them."""

from __future__ import annotations

from collections import deque

import pytest

from autotune.core.context import Device
from autotune.core.errors import AutotuneError, NothingFits
from autotune.core.outcome import (
    Completed,
    Crashed,
    Measurement,
    Outcome,
    OutOfMemory,
    Peak,
    PeakKind,
    Phase,
    TimedOut,
)
from autotune.core.units import GIB
from autotune.runners.probe import PROBE_SECONDS, LocalProber, measure
from autotune.trial.spec import Event, TrialSpec
from tests.studies import make_facts

SPEC = TrialSpec(
    number=3, config={"accumulation": 2}, facts=make_facts(), device=Device(kind="cpu"), threads=1,
    limit_bytes=GIB, limit_seconds=1e6, cache="", log="",
)  # fmt: skip
MEASURED = Measurement(
    peaks=(Peak(phase=Phase.STEADY, kind=PeakKind.ALLOCATED, bytes=GIB),),
    anatomy={"weights": GIB},
)


class Scripted:
    """A runner that reports two steps and then an outcome, or ends without one."""

    def __init__(self, outcome: Outcome | None) -> None:
        self.outcome, self.specs, self.closed = outcome, list[TrialSpec](), False
        self.events: deque[Event] = deque()

    def submit(self, spec: TrialSpec) -> None:
        self.specs.append(spec)
        self.events.extend(Event(trial=spec.number, kind="step") for _ in range(2))
        if self.outcome is not None:
            data = self.outcome.to_json()
            self.events.append(Event(trial=spec.number, kind="outcome", data=data))

    def next(self, timeout: float | None = None) -> Event | None:
        return self.events.popleft() if self.events else None

    def close(self) -> None:
        self.closed = True


def prober(outcome: Outcome | None) -> tuple[LocalProber, Scripted]:
    runner = Scripted(outcome)
    return LocalProber(runner), runner  # type: ignore[arg-type]  # what of a runner it uses


def test_a_probe_is_a_short_trial_under_the_limit_of_its_spec() -> None:
    probing, runner = prober(Completed(measurement=MEASURED))
    with probing:
        found = probing.probe(SPEC)
    assert isinstance(found, Completed)
    assert found.measurement == MEASURED
    asked = runner.specs[0]
    assert asked.probe
    assert asked.limit_bytes == SPEC.limit_bytes
    assert asked.limit_seconds == PROBE_SECONDS
    assert runner.closed


def test_a_runner_that_ends_without_an_outcome_is_a_crash() -> None:
    assert isinstance(prober(None)[0].probe(SPEC), Crashed)


def test_nothing_is_started_before_the_first_probe() -> None:
    with LocalProber():
        pass


def test_what_was_measured_is_an_estimate() -> None:
    found = measure(SPEC, prober(Completed(measurement=MEASURED))[0])
    assert found.measured
    assert found.predicted_bytes == GIB


def test_other_ends_are_errors() -> None:
    with pytest.raises(NothingFits, match="accum 2 needs more than cpu has free"):
        measure(SPEC, prober(OutOfMemory(needed_bytes=2 * GIB))[0])
    with pytest.raises(AutotuneError, match="the probe of accum 2 timed out after 9 s"):
        measure(SPEC, prober(TimedOut(limit_seconds=9.0, phase="first"))[0])
