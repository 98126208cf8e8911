"""Does every knob do what its name says, here? One knob off neutral at a time, measured.

Each value of each knob is trained beside its peer, the same configuration without it: the baseline,
or, where the value needs company to be legal (`weight_bits` needs adapters), the company alone.
Memory is repeatable to the byte, so one run tells it; scores are compared with the standard error
of the evaluation set and, with several seeds, of the seeds too.

A knob is marked where it breaks its promise: an EXACT one whose score moves, or one that claims a
leanest value which needs no less memory than neutral.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from autotune.core.companions import first_reason, with_companions
from autotune.core.config import Config
from autotune.core.context import Context, Device
from autotune.core.domains import Value
from autotune.core.knob import Knob, Numerics
from autotune.core.outcome import (
    Completed,
    Measurement,
    Outcome,
    PeakKind,
    Phase,
    outcome_from_json,
)
from autotune.core.workload import Metric, WorkloadFacts
from autotune.knobs.stages import COMPRESS, DEPLOY, EVALUATE, SAVE
from autotune.runners.base import Runner
from autotune.trial.spec import TrialSpec

NOTICEABLE = 0.01
"""Share of the peak below which a difference does not count as a saving."""

_AFTER_TRAINING = frozenset({COMPRESS.name, EVALUATE.name, DEPLOY.name, SAVE.name})
_TRIAL_SECONDS = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One value of one knob, what it is compared with, or why it cannot be tried.

    Attributes:
        knob: The knob.
        value: A value that is off neutral.
        config: The value with what it needs beside it; None if it is blocked here.
        reason: Why it is blocked, or empty.
    """

    knob: Knob
    value: Value
    config: Config | None
    reason: str = ""

    @property
    def peer(self) -> Config | None:
        """The same configuration without the value."""
        if self.config is None:
            return None
        return Config({n: v for n, v in self.config.items() if n != self.knob.name})


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What one value did, against its peer.

    Attributes:
        case: Which value.
        outcome: How its first run ended; None if it is blocked.
        peak_bytes: Difference of peaks while training; None if either did not complete.
        peak_share: The same as a share of the peer's peak.
        eval_share: Difference of peaks in evaluation, as a share.
        resident_share: Difference of what the process holds while training, as a share.
        time_share: Difference of a step's time, as a share.
        score: Difference of scores; positive is better.
        score_error: Its standard error; None if it cannot be told.
    """

    case: Case
    outcome: Outcome | None = None
    peak_bytes: int | None = None
    peak_share: float | None = None
    eval_share: float | None = None
    resident_share: float | None = None
    time_share: float | None = None
    score: float | None = None
    score_error: float | None = None

    @property
    def saves(self) -> bool:
        """Whether it needs noticeably less memory than its peer, where its knob acts."""
        acting = {bound.stage.name for bound in self.case.knob.transforms}
        after = acting <= _AFTER_TRAINING or COMPRESS.name in acting
        shares = [self.peak_share, self.resident_share, *([self.eval_share] if after else [])]
        return any(share is not None and share < -NOTICEABLE for share in shares)

    @property
    def moved(self) -> bool:
        """Whether the score differs by more than two standard errors."""
        if self.score is None or self.score_error is None:
            return False
        return abs(self.score) > 2.0 * self.score_error + 1e-12


def cases(knobs: Sequence[Knob], context: Context, names: Sequence[str] = ()) -> list[Case]:
    """Return every value off neutral, with the company that makes it legal.

    Args:
        knobs: Every knob.
        context: Device, model and libraries.
        names: Knobs to look at; empty for all.
    """
    found = []
    for knob in knobs:
        for value in knob.domain.grid(4):
            if value == knob.neutral or (names and knob.name not in names):
                continue
            wanted = {knob.name: value}
            values = with_companions(wanted, knobs, context)
            reason = "" if values else first_reason(wanted, knobs, context) or ""
            config = Config(values, knobs) if values else None
            found.append(Case(knob=knob, value=value, config=config, reason=reason))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Where the configurations of a check run.

    Attributes:
        runner: Runs them, one at a time, so that times compare.
        facts: Workload, model and data.
        device: Where.
        threads: CPU threads of a trial.
        folder: For logs and prepared data.
        seeds: Runs of each lossy value.
    """

    runner: Runner
    facts: WorkloadFacts
    device: Device
    threads: int
    folder: Path
    seeds: int = 1

    def measure(
        self,
        chosen: Sequence[Case],
        told: Callable[[int, int, str], None] | None = None,
    ) -> list[Difference]:
        """Run every case and its peer, each configuration once for a seed, and compare.

        Args:
            chosen: What to compare.
            told: Hears the number of runs that ended, of all, and what was run last.
        """
        wanted = dict.fromkeys(
            (config, seed) for case in chosen for config, seed in self._runs(case)
        )
        outcomes: dict[tuple[Config, int], Outcome] = {}
        for number, (config, seed) in enumerate(wanted):
            outcomes[config, seed] = self._run(number, config, seed)
            if told is not None:
                told(number + 1, len(wanted), str(config.to_json()))
        return [self._compare(case, outcomes) for case in chosen]

    def _runs(self, case: Case) -> Iterator[tuple[Config, int]]:
        if case.config is None or case.peer is None:
            return
        for seed in range(self._seeds_of(case)):
            yield case.peer, seed
            yield case.config, seed

    def _seeds_of(self, case: Case) -> int:
        return self.seeds if case.knob.numerics is Numerics.LOSSY else 1

    def _run(self, number: int, config: Config, seed: int) -> Outcome:
        workload = replace(self.facts.workload, seed=self.facts.workload.seed + seed)
        spec = TrialSpec(
            number=number,
            config=config.to_json(),
            facts=replace(self.facts, workload=workload),
            device=self.device,
            threads=self.threads,
            limit_bytes=self.device.total_bytes,
            limit_seconds=_TRIAL_SECONDS,
            cache=str(self.folder / "cache"),
            log=str(self.folder / "trials" / str(number) / "log.txt"),
        )
        self.runner.submit(spec)
        while (event := self.runner.next()) is not None:
            if event.kind == "outcome":
                return outcome_from_json(event.data)
        raise AssertionError("a runner hands in an outcome for every trial")

    def _compare(self, case: Case, outcomes: Mapping[tuple[Config, int], Outcome]) -> Difference:
        if case.config is None or case.peer is None:
            return Difference(case=case)
        seeds = range(self._seeds_of(case))
        first = outcomes[case.config, 0]
        pairs = [(outcomes[case.peer, s], outcomes[case.config, s]) for s in seeds]
        both = [(a, b) for a, b in pairs if isinstance(a, Completed) and isinstance(b, Completed)]
        if not both:
            return Difference(case=case, outcome=first)
        before, after = both[0]
        old, new = before.measurement, after.measurement
        kind = PeakKind.RESERVED if old.peak(PeakKind.RESERVED) else PeakKind.ALLOCATED
        score, error = _score_difference(both, self.facts.metric)
        training_old, training_new = _training_peak(old, kind), _training_peak(new, kind)
        return Difference(
            case=case,
            outcome=first,
            peak_bytes=training_new - training_old,
            peak_share=_share(training_old, training_new),
            eval_share=_share(old.peak(kind, Phase.EVALUATE), new.peak(kind, Phase.EVALUATE)),
            resident_share=_share(old.footprint_bytes, new.footprint_bytes),
            time_share=_share(
                statistics.median(a.measurement.step_seconds for a, _ in both),
                statistics.median(b.measurement.step_seconds for _, b in both),
            ),
            score=score,
            score_error=error,
        )


def broken_promises(differences: Sequence[Difference]) -> dict[str, str]:
    """Return a sentence for each knob that does not do what it says, by its name."""
    found: dict[str, str] = {}
    knobs = {difference.case.knob.name: difference.case.knob for difference in differences}
    for name, knob in knobs.items():
        measured = [d for d in differences if d.case.knob.name == name and d.peak_bytes is not None]
        failed = {
            str(d.case.value): d.outcome.summary
            for d in differences
            if d.case.knob.name == name and d.outcome and not isinstance(d.outcome, Completed)
        }
        if failed:
            first = next(iter(failed.values()))
            found[name] = f"did not complete with {', '.join(failed)}: {first}"
        elif knob.numerics is Numerics.EXACT and any(d.moved for d in measured):
            found[name] = "promises the same result, and the score moved"
        elif measured and knob.leanest != knob.neutral and not any(d.saves for d in measured):
            found[name] = "claims to need less memory, and saved none here"
    return found


def _training_peak(measured: Measurement, kind: PeakKind) -> int:
    """Return the greater peak of both phases of training: a short one may have no steady steps."""
    return max(measured.peak(kind, Phase.FIRST), measured.peak(kind, Phase.STEADY))


def _share(before: float, after: float) -> float | None:
    """Return the relative difference; None if either was not measured."""
    return after / before - 1.0 if before and after else None


def _score_difference(
    both: Sequence[tuple[Completed, Completed]], metric: Metric
) -> tuple[float, float | None]:
    """Return the mean difference and its standard error.

    The evaluation sets of a pair are the same, so their errors are correlated, and adding them up
    is on the safe side.
    """
    sign = 1.0 if metric.maximize else -1.0
    name = metric.name
    differences = [sign * (b.scores[name].value - a.scores[name].value) for a, b in both]
    mean = statistics.fmean(differences)
    errors = [x.scores[name].stderr for pair in both for x in pair]
    if any(error is None for error in errors):
        return mean, None
    within = math.sqrt(sum((error or 0.0) ** 2 for error in errors)) / len(both)
    between = statistics.stdev(differences) / math.sqrt(len(both)) if len(both) > 1 else 0.0
    return mean, max(within, between)
