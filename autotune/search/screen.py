"""Refuse what cannot fit before it costs anything.

Every proposal is counted (`memory/predict.py`), and the count is turned into what the device will
show by what this study has measured so far (`memory/calibrate.py`). A configuration whose interval
lies above the limit as a whole is refused. One whose interval holds the limit is doubtful: admitted
with the limit enforced, so that the line between them is learned too, as long as that costs no more
than `MOST_OUT_OF_MEMORY` of the trials after the first ones. The interval says with which
probability it will not fit. If that is more than the share, then what was risked so far, or has
truly failed, and this together must not be more than the share of all trials: every trial that fits
adds to what may be risked.

What cannot be rehearsed is measured: a probe trains it for a few steps under the limit and skips
the evaluation. It is never guessed.

Every structure is rehearsed in full: trace algebra (`memory/algebra.py`) answers further questions
of one structure, but nine tenths of a search's proposals have one of their own
(`tests/benchmarks/screening.py` counts them). The first question of a deep model is where it could
pay: with 24 and 32 blocks of GPT-2 it took more CPU seconds than a rehearsal in full, with 80 of a
Llama less than half (`tests/benchmarks/rehearsal.py`, `size`).

Where memory is not what decides, rehearsing would only cost time: nothing is rehearsed as long as
neither the size of the model nor any measurement comes near the limit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from autotune.core.config import Config
from autotune.core.errors import AutotuneError
from autotune.core.outcome import Completed, Measurement, Outcome, OutOfMemory, Phase, Refused
from autotune.core.record import TrialRecord
from autotune.core.units import format_gib
from autotune.memory.calibrate import LOADING, Calibration, Interval, Prior
from autotune.memory.predict import COVERAGE, Count, Rehearser, counted
from autotune.memory.rehearsal import CannotRehearse
from autotune.trial.spec import TrialSpec

NEAR = 0.5
"""Share of the limit from which on memory decides."""

STATE_BYTES = 16
"""Weights, gradients and two states of a parameter in fp32: what a model needs before any data."""

PARAMETER_BYTES = 4
"""What loading is held against, for each parameter."""

MOST_OUT_OF_MEMORY = 0.02
"""Share of the trials, after the first ones, that learning where the limit is may cost, in
expectation and in fact."""

FIRST_TRIALS = 5
"""Trials in which nothing is known yet."""


class WarmRehearser(Rehearser, Protocol):
    """Rehearses trials, in a process of its own."""

    def close(self) -> None:
        """End the process."""


class Prober(Protocol):
    """Runs the first steps of trials on the device, one at a time."""

    def probe(self, spec: TrialSpec) -> Outcome:
        """Return how a probe of a trial ended."""

    def close(self) -> None:
        """End what is left of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What is known of a configuration before it runs.

    Attributes:
        count: What was counted; None if it was not.
        probed_bytes: Peak that a probe measured where it could not be counted; 0 if none did.
        interval: Where the measurement will lie; None if nothing is known.
        note: Why it was not counted, and what was done instead, or empty.
    """

    count: Count | None = None
    probed_bytes: int = 0
    interval: Interval | None = None
    note: str = ""

    @property
    def parameters(self) -> int:
        """Of the model as it is trained; 0 if that was not counted."""
        return self.count.rehearsal.parameters if self.count else 0

    @property
    def rehearsed_bytes(self) -> int:
        """The peak that was counted or probed, as `Measurement.peak_bytes`; 0 if none was."""
        return self.count.bytes if self.count else self.probed_bytes


class Screen:
    """Looks at proposals, and learns from what they measured.

    Args:
        rehearser: Rehearses.
        limit_bytes: Most that a trial may use.
        parameters: Of the model, for a first guess whether memory decides at all.
        prober: Measures what cannot be rehearsed; None to admit it.
    """

    def __init__(
        self,
        rehearser: WarmRehearser,
        limit_bytes: int,
        parameters: int = 0,
        prober: Prober | None = None,
    ) -> None:
        self._rehearser = rehearser
        self._prober = prober
        self._limit_bytes = limit_bytes
        self._steps: list[tuple[float, float]] = []
        self._loads: list[tuple[float, float]] = []
        self._prior = Prior()
        self._parameters: dict[Config, int] = {}
        self._whole: set[Config] = set()  # of which loading was counted, too
        self._trials = self._failures = 0
        self._risked = 0.0
        self._near = parameters * STATE_BYTES > NEAR * limit_bytes

    def look(self, spec: TrialSpec) -> Look:
        """Find out what a proposal needs, if memory decides."""
        if not self._near:
            return Look()
        try:
            count = counted(spec, self._rehearser, limited=True)
        except CannotRehearse as error:
            return self._probed(spec, error.message)
        except AutotuneError as error:  # the trial will say the same
            return Look(note=error.message)
        self._prior = count.outside.prior
        config = Config(spec.config)
        self._parameters[config] = count.rehearsal.parameters
        interval = self._step(count.bytes)
        if Phase.LOAD in count.rehearsal.peaks:
            self._whole.add(config)
        else:
            interval = interval.or_more(self._load(count.rehearsal.parameters))
        return Look(count=count, interval=interval)

    def refusal(self, look: Look) -> Refused | None:
        """Return the outcome of a proposal that does not fit, or not surely enough; else None.

        What is admitted is taken to be run, and its risk is counted.
        """
        if look.interval is None:
            return None
        doubt = look.interval.chance_above(self._limit_bytes, COVERAGE)
        if look.interval.low <= self._limit_bytes and self._may_risk(doubt):
            self._risked += doubt if self._trials >= FIRST_TRIALS else 0.0
            return None
        return Refused(
            needed_bytes=round(look.interval.middle), least_bytes=round(look.interval.low)
        )

    def learn(self, record: TrialRecord) -> None:
        """Take note of what a trial measured, or of how much more than allowed it needed."""
        outcome = record.outcome
        if outcome is None:
            return
        self._trials += not record.refused
        if isinstance(outcome, OutOfMemory):
            self._failures += self._trials > FIRST_TRIALS
            self._learn_failure(record, outcome)
        if not isinstance(outcome, Completed):
            self._near = True
            return
        measurement = outcome.measurement
        self._near = self._near or measurement.footprint_bytes > NEAR * self._limit_bytes
        load, step = _peaks(measurement)
        whole = record.config in self._whole
        if whole:
            load, step = 0, max(load, step)
        # Of a trial of an earlier session, what was counted may have been loading: no pair then.
        if record.rehearsed_bytes and step >= load:
            self._steps.append((record.rehearsed_bytes, step))
        if load and measurement.parameters:
            self._loads.append((PARAMETER_BYTES * measurement.parameters, load))

    def close(self) -> None:
        """End the rehearser and the prober."""
        self._rehearser.close()
        if self._prober is not None:
            self._prober.close()

    def _may_risk(self, doubt: float) -> bool:
        """Whether a trial that may not fit is worth what it may cost."""
        if self._trials < FIRST_TRIALS or doubt <= MOST_OUT_OF_MEMORY:
            return True
        allowed = MOST_OUT_OF_MEMORY * (self._trials + 1 - FIRST_TRIALS)
        return max(self._risked, self._failures) + doubt <= allowed

    def _learn_failure(self, record: TrialRecord, outcome: OutOfMemory) -> None:
        """Learn from a need that is known from below only, if it is more than was expected."""
        needed = outcome.needed_bytes
        if outcome.phase is not Phase.LOAD or record.config in self._whole:
            size = record.rehearsed_bytes
            if size and needed > self._step(size).middle:
                self._steps.append((size, needed))
            return
        parameters = self._parameters.get(record.config, 0)
        if parameters and needed > self._load(parameters).middle:
            self._loads.append((PARAMETER_BYTES * parameters, needed))

    def _step(self, counted_bytes: int) -> Interval:
        """Return where the peak of training and evaluating will lie."""
        return Calibration(self._steps, self._prior).predict(counted_bytes, COVERAGE)

    def _load(self, parameters: int) -> Interval:
        """Return where the peak of loading will lie; nowhere, before any was measured."""
        if not self._loads:
            return Interval(low=0.0, middle=0.0, high=0.0)
        fixed = self._prior
        prior = replace(LOADING, fixed_bytes=fixed.fixed_bytes, fixed_spread=fixed.fixed_spread)
        size = max(1, PARAMETER_BYTES * parameters)
        return Calibration(self._loads, prior).predict(size, COVERAGE)

    def _probed(self, spec: TrialSpec, note: str) -> Look:
        """Measure the first steps of a trial; a probe that fails otherwise says nothing."""
        if self._prober is None:
            return Look(note=note)
        outcome = self._prober.probe(replace(spec, probe=True))
        if isinstance(outcome, OutOfMemory):
            needed = max(outcome.needed_bytes, self._limit_bytes + 1)
            said = f"{note}; a probe ran out of memory and needs at least {format_gib(needed)}"
            return Look(
                probed_bytes=needed,
                interval=Interval(low=needed, middle=needed, high=needed),
                note=said,
            )
        if not isinstance(outcome, Completed):
            return Look(note=f"{note}; a probe {outcome.summary}")
        footprint = outcome.measurement.footprint_bytes
        return Look(
            probed_bytes=outcome.measurement.peak_bytes,
            interval=Interval(low=footprint, middle=footprint, high=footprint),
            note=f"{note}; a probe measured {format_gib(footprint)}",
        )


def _peaks(measurement: Measurement) -> tuple[int, int]:
    """Return the greatest peak of loading and that of all other phases that count."""
    counting = [p for p in measurement.peaks if measurement.counted in ("", p.phase)]
    load = max((p.bytes for p in counting if p.phase is Phase.LOAD), default=0)
    return load, max((p.bytes for p in counting if p.phase is not Phase.LOAD), default=0)
