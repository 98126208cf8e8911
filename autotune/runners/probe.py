"""One trial's first steps, measured on this machine: what to do where memory cannot be rehearsed.

A probe (`TrialSpec.probe`) trains as many steps as show the peak and skips the evaluation, in a
process of its own and under the trial's limit. The caller waits for it, as for a rehearsal.
"""

from __future__ import annotations

from dataclasses import replace
from types import TracebackType

from autotune.core.config import Config
from autotune.core.errors import AutotuneError, NothingFits
from autotune.core.outcome import Completed, Crashed, Outcome, OutOfMemory, outcome_from_json
from autotune.core.units import format_gib
from autotune.knobs import BUILTIN
from autotune.memory.predict import Estimate, measured
from autotune.runners.local import LocalRunner
from autotune.trial.spec import TrialSpec

PROBE_SECONDS = 300.0
"""Most seconds for a probe; one that takes longer says nothing."""


class LocalProber:
    """Runs probes one at a time; what they need is started with the first.

    Args:
        runner: Runs them; by default one of this machine, of its own, so that trials that run
            meanwhile are not heard in its stead.
    """

    def __init__(self, runner: LocalRunner | None = None) -> None:
        self._runner = runner

    def __enter__(self) -> LocalProber:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def probe(self, spec: TrialSpec) -> Outcome:
        """Return how a probe of a trial ended, with what it measured."""
        if self._runner is None:
            self._runner = LocalRunner(slots=1)
        seconds = min(spec.limit_seconds or PROBE_SECONDS, PROBE_SECONDS)
        self._runner.submit(replace(spec, probe=True, limit_seconds=seconds))
        while (event := self._runner.next()) is not None:
            if event.kind == "outcome":
                return outcome_from_json(event.data)
        return Crashed(error="the probe left no outcome")

    def close(self) -> None:
        """End what still runs."""
        if self._runner is not None:
            self._runner.close()


def measure(spec: TrialSpec, prober: LocalProber) -> Estimate:
    """Probe a trial, and return what was measured in the form of an estimate.

    Args:
        spec: The trial.
        prober: Runs the probe.

    Raises:
        NothingFits: If it needs more than the spec's limit.
        AutotuneError: If it ends in another way.
    """
    outcome = prober.probe(spec)
    if isinstance(outcome, Completed):
        return measured(spec, outcome.measurement)
    what = Config(spec.config, BUILTIN).describe(BUILTIN)
    if isinstance(outcome, OutOfMemory):
        raise NothingFits(
            f"{what} needs more than {spec.device.label} has free: "
            f"at least {format_gib(outcome.needed_bytes)}",
            help="set leaner values, such as --set accumulation=8 or --set checkpointing=full",
        )
    raise AutotuneError(
        f"the probe of {what} {outcome.summary}",
        help="without --probe it is rehearsed instead; `autotune doctor` checks the machine",
    )
