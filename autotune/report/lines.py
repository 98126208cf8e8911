"""Progress without a terminal: one `key=value` line per trial, for pipes, CI and `nohup`.

::

    autotune  budget=16.0GB device=cuda:0 space=default trials=60 run=results/qwen-16gb
    trial 0  completed      ppl=9.31 ±.02 peak=12.8GiB tok_s=1890 front=yes  bf16, ckpt full
    front    3 of 20        best_ppl=8.60 min_peak=4.1GiB elapsed=0:19
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import IO

from autotune.core.observer import Report, RunView
from autotune.core.outcome import (
    Completed,
    Crashed,
    Diverged,
    Outcome,
    OutOfMemory,
    Paused,
    Refused,
    Rung,
    Stopped,
    TimedOut,
)
from autotune.core.record import TrialRecord
from autotune.core.units import format_duration, format_gb, gib
from autotune.report.progress import Progress
from autotune.report.text import rate_text


class Lines(Progress):
    """Writes one line per finished trial.

    Args:
        file: Where to.
        verbose: Whether phases of trials get lines too.
    """

    def __init__(self, file: IO[str], *, verbose: bool = False) -> None:
        super().__init__()
        self.file = file
        self.verbose = verbose

    def started(self, run: RunView) -> None:
        """Write what is searched."""
        super().started(run)
        spec = run.spec
        self._write(
            f"autotune  budget={format_gb(spec.budget_bytes).replace(' ', '')} "
            f"device={run.device.label} objective={spec.facts.workload.objective} "
            f"space={spec.space} trials={spec.trials} jobs={spec.jobs} run={run.folder}"
        )

    def event(self, record: TrialRecord, event: Report) -> None:
        """Write phases, if verbose."""
        super().event(record, event)
        if self.verbose and event.kind == "phase":
            self._write(f"trial {record.number}  {'phase':14} {event.data.get('phase', '')}")

    def trial_ended(
        self,
        record: TrialRecord,
        joined_front: bool,  # noqa: FBT001  (see `Observer`)
        front: Sequence[TrialRecord],
    ) -> None:
        """Write how a trial ended."""
        super().trial_ended(record, joined_front, front)
        assert self.view is not None
        assert record.outcome is not None
        knobs = self.view.space.knobs
        facts = self._facts(record, record.outcome, joined=joined_front)
        label = record.config.describe(knobs)
        self._write(f"trial {record.number}  {record.outcome.tag:14} {facts}  {label}")

    def note(self, text: str) -> None:
        """Write it."""
        self._write(f"note     {text}")

    def ended(self, status: str) -> None:
        """Write what the front has come to."""
        super().ended(status)
        if self.view is None:
            return
        facts = f"status={status} elapsed={format_duration(self.elapsed)}"
        if self.front:
            best, least = self.front[-1], self.front[0]
            metric = self.view.metric
            score = best.score(metric)
            peak = gib(least.outcome.measurement.peak_bytes) if least.outcome else "–"
            value = f"{score.value:.{metric.digits}f}" if score else "–"
            facts = f"best_{metric.name}={value} min_peak={peak}GiB {facts}"
        count = f"{len(self.front)} of {len(self.ended_trials)}"
        self._write(f"front    {count:14} {facts}")

    def _facts(self, record: TrialRecord, outcome: Outcome, *, joined: bool) -> str:
        match outcome:
            case Completed():
                return self._completed(record, outcome, joined=joined)
            case Paused(rung=rung):
                return self._paused(outcome, rung)
            case OutOfMemory(phase=phase, step=step, needed_bytes=needed):
                need = f" needed={gib(needed)}GiB" if needed else ""
                return f"phase={phase} step={step}{need} limit={gib(record.limit_bytes)}GiB"
            case Refused(needed_bytes=needed):
                return f"predicted={gib(needed)}GiB limit={gib(record.limit_bytes)}GiB"
            case Stopped(step=step, reason=reason):
                return f"step={step} reason={reason.replace(' ', '-') or 'none'}"
            case Diverged(step=step, loss=loss):
                return f"step={step} loss={loss}"
            case TimedOut(limit_seconds=limit, phase=phase):
                return f"limit={limit:.0f}s phase={phase or 'start'}"
            case Crashed(signal=signal, error=error, exit_code=code):
                cause = error.partition("\n")[0] or f"exit code {code}"
                return f"signal={signal}" if signal else f"error={cause!r}"

    def _paused(self, outcome: Paused, rung: Rung) -> str:
        assert self.view is not None
        metric = self.view.metric
        score = rung.scores.get(metric.name)
        value = f"{score.value:.{metric.digits}f}" if score else "–"
        peak = gib(outcome.measurement.peak_bytes)
        return f"at={rung.label} {metric.name}={value} peak={peak}GiB"

    def _completed(self, record: TrialRecord, outcome: Completed, *, joined: bool) -> str:
        assert self.view is not None
        metric = self.view.metric
        score = record.score(metric)
        value = f"{score.value:.{metric.digits}f}" if score else "–"
        measured = outcome.measurement
        fits = "" if record.feasible else f"footprint={gib(measured.footprint_bytes)}GiB fits=no "
        return (
            f"{metric.name}={value} peak={gib(measured.peak_bytes)}GiB "
            f"tok_s={rate_text(measured.throughput)} {fits}front={'yes' if joined else 'no'}"
        )

    def _write(self, line: str) -> None:
        self.file.write(" ".join(line.splitlines()).rstrip() + "\n")
        self.file.flush()
