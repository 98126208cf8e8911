"""A trial again, from its record: do its numbers hold?

The study database has everything that a trial depends on: workload, configuration, seeds, device,
threads, limits and library versions. `repeat_trial` prepares the data anew, runs the trial in the
same order of data on the same device, and compares. Peak memory must come out within one per cent;
the score must lie in the interval that its standard error gave it when it was recorded. What is not
as it was then (another card, other versions, other data) is said in a sentence: it explains a
difference, and is no reason to hide one.

Further seeds train further: they are no check, but show how far scores scatter.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from autotune.core.context import Device
from autotune.core.errors import AutotuneError, BadValue, UnknownName, UsageError
from autotune.core.outcome import Completed, Outcome, outcome_from_json
from autotune.core.record import TrialRecord
from autotune.core.units import GIB
from autotune.core.workload import RunSpec, WorkloadFacts
from autotune.plan import Settings, local_runner
from autotune.runners.base import Runner
from autotune.runners.devices import library_versions, pick_device
from autotune.runners.seeds import prepare_seed
from autotune.storage.places import cache_path
from autotune.storage.rows import read_device
from autotune.storage.run import Run
from autotune.trial.spec import TrialSpec

PEAK_TOLERANCE = 0.01
"""Share of the recorded peak that it may differ by."""

INTERVAL = 1.96
"""Standard errors on either side of a score that hold it 95 times of 100."""

Told = Callable[[str], None]
"""Hears what is being done, as a sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One number, as recorded and again.

    Attributes:
        name: What it is: `"peak memory"`, or the name of a metric.
        unit: `"GiB"`, or empty.
        digits: Digits after the point when shown.
        recorded: In the study database.
        again: Now.
        tolerance: Most that they may differ by.
    """

    name: str
    unit: str
    digits: int
    recorded: float
    again: float
    tolerance: float

    @property
    def difference(self) -> float:
        """How much more it is now."""
        return self.again - self.recorded

    @property
    def holds(self) -> bool:
        """Whether it is within its tolerance."""
        return abs(self.difference) <= self.tolerance


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeat:
    """What became of a trial when it ran again.

    Attributes:
        run: Name of its run.
        record: The trial as recorded.
        outcomes: How it ended, for the recorded seed and then for each further one.
        checks: Its numbers; none if it did not complete both times.
        notes: Sentences on what is not as it was when it was recorded.
        log: End of the output of a run that ended otherwise than recorded.
    """

    run: str
    record: TrialRecord
    outcomes: tuple[Outcome, ...]
    checks: tuple[Check, ...]
    notes: tuple[str, ...] = ()
    log: tuple[str, ...] = ()

    @property
    def ended_alike(self) -> bool:
        """Whether it ended in the same way."""
        return self.record.outcome is not None and self.outcomes[0].tag == self.record.outcome.tag

    @property
    def holds(self) -> bool:
        """Whether it ended in the same way, and all its numbers hold."""
        return self.ended_alike and all(check.holds for check in self.checks)

    def scores(self, metric: str) -> list[float]:
        """Return a metric for each seed that completed."""
        ended = [outcome for outcome in self.outcomes if isinstance(outcome, Completed)]
        return [outcome.scores[metric].value for outcome in ended if metric in outcome.scores]


def repeat_trial(
    run: Run,
    number: int,
    *,
    seeds: int = 1,
    keep: Path | None = None,
    snapshot: Path | None = None,
    runner: Runner | None = None,
    told: Told | None = None,
) -> Repeat:
    """Run a recorded trial again and compare.

    Args:
        run: Its run.
        number: Which trial.
        seeds: How many trainings: the first with the recorded seed, each further one with the next.
        keep: A folder that does not exist yet, for the trained model as plain transformers loads
            it; None to keep nothing.
        snapshot: File for torch's own snapshot of one step of the first training, on CUDA; None for
            none, as recording it takes time.
        runner: Runs the trial; None for this machine.
        told: Hears what is being done.

    Returns:
        What became of it.

    Raises:
        BadValue: If `seeds` is below 1.
        UsageError: If the trial has not run, the device it ran on is not here, or it has no
            snapshots.
        AutotuneError: If model or data cannot be prepared any more.
    """
    if seeds < 1:
        raise BadValue(f"--seeds must be at least 1, but got {seeds}")
    record = run.trial(number)
    if record.outcome is None or record.refused:
        raise UsageError(
            f"trial {run.name}/{number} never ran, so there is nothing to hold a run against",
            help=f"autotune front {run.name} lists trials that did",
        )
    if snapshot is not None and run.spec.device["kind"] != "cuda":
        raise UsageError(
            f"{run.name}/{number} ran on {run.spec.device['kind']}, and only CUDA's caching "
            "allocator makes snapshots",
            where="--snapshot",
            help=f"autotune report {run.name} shows its memory over one step, rehearsed",
        )
    device = _same_device(run, number)
    if snapshot is not None:
        snapshot.unlink(missing_ok=True)  # an earlier one must not pass for this one
    used = runner or local_runner(Settings(budget=run.budget, device=device.label, jobs=1))
    folder = Path(tempfile.mkdtemp(prefix="autotune-replay-"))
    say = told or _to_nobody
    try:
        outcomes, notes = [], differences(run.spec, device)
        for seed in range(seeds):
            say(f"seed {run.spec.facts.workload.seed + seed}: preparing model and data")
            facts, same = prepare_seed(used, run.spec.facts, seed, folder / "cache")
            if not (same or seed):
                notes.append(
                    "The data is not what it was: its digest began with "
                    f"{run.spec.facts.data_fingerprint[:12]} when it was recorded."
                )
            spec = trial_spec(run, record, device, facts, folder / f"{seed}.log")
            spec = replace(spec, keep=_path(keep, seed), snapshot=_path(snapshot, seed))
            outcomes.append(_outcome(used, spec, say))
        repeat = Repeat(
            run=run.name,
            record=record,
            outcomes=tuple(outcomes),
            checks=_checks(run, record.outcome, outcomes[0]),
            notes=tuple(notes),
        )
        return repeat if repeat.ended_alike else replace(repeat, log=_tail(folder / "0.log"))
    finally:
        used.close()
        shutil.rmtree(folder, ignore_errors=True)


def trial_spec(
    run: Run, record: TrialRecord, device: Device, facts: WorkloadFacts, log: Path
) -> TrialSpec:
    """Return what a runner needs to run a recorded trial again.

    Args:
        run: Its run.
        record: The trial.
        device: The device that it was measured on.
        facts: Workload, model and data, with the data prepared beside the log.
        log: File for its output; prepared data is in the folder `cache` beside it.
    """
    inference = facts.workload.purpose == "inference"
    return TrialSpec(
        number=record.number,
        config=record.config.to_json(),
        facts=facts,
        device=device,
        threads=run.spec.threads,
        limit_bytes=device.total_bytes if inference else record.limit_bytes,
        limit_seconds=run.spec.trial_limit,
        cache=str(log.parent / "cache"),
        log=str(log),
    )


def has_data(run: Run) -> bool:
    """Whether the data that a run prepared is still in its folder."""
    cache = cache_path(run.folder)
    return cache.is_dir() and any(cache.iterdir())


def rehearsal_spec(run: Run, record: TrialRecord) -> TrialSpec:
    """Return what is rehearsed to know the memory of a recorded trial, or of one like it.

    It is for the device that the run was measured on, which need not be here.

    Args:
        run: Its run.
        record: The trial.

    Raises:
        UsageError: If the data that the run prepared is gone.
    """
    cache = cache_path(run.folder)
    if not has_data(run):
        raise UsageError(
            f"the data that {run.name} prepared is not in '{cache}'",
            help="make it where the run was made",
        )
    device = read_device(run.spec.device)
    spec = trial_spec(run, record, device, run.spec.facts, run.log(record.number))
    return replace(spec, cache=str(cache))


def differences(spec: RunSpec, device: Device) -> list[str]:
    """Return a sentence for each thing that is not as it was when a run was recorded."""
    found = []
    name = str(spec.device.get("name", ""))
    if name and name != device.name:
        found.append(f"It was recorded on another {device.kind} device: {name}, not {device.name}.")
    here = library_versions()
    changed = [
        f"{library} {version} (here {here.get(library, 'missing')})"
        for library, version in spec.versions.items()
        if here.get(library) != version
    ]
    if changed:
        found.append(f"It was recorded with {', '.join(changed)}.")
    return found


def _path(path: Path | None, seed: int) -> str:
    """Return what is to be kept of the first training, as the process of a trial finds it."""
    return "" if path is None or seed else str(path.absolute())


def _to_nobody(sentence: str) -> None:
    pass


def _same_device(run: Run, number: int) -> Device:
    """Return the device that a run was measured on.

    Raises:
        UsageError: If this machine has none of its kind.
    """
    kind, index = str(run.spec.device["kind"]), run.spec.device.get("index", 0)
    label = kind if kind == "cpu" else f"{kind}:{index}"
    try:
        return pick_device(label)
    except UnknownName as error:
        raise UsageError(
            f"{run.name}/{number} was measured on {label} ({run.spec.device.get('name')}), which "
            "this machine does not have, and numbers of another kind of device say nothing of it",
            help="run the same command on a machine that has one; `autotune doctor` shows what is "
            "here",
        ) from error


def _outcome(runner: Runner, spec: TrialSpec, told: Told) -> Outcome:
    runner.submit(spec)
    seed = spec.facts.workload.seed
    while (event := runner.next()) is not None:
        if event.kind == "outcome":
            return outcome_from_json(event.data)
        if event.kind == "phase":
            told(f"seed {seed}: {event.data['phase']}")
    raise AutotuneError("the runner gave no outcome for the trial")


def _checks(run: Run, recorded: Outcome, again: Outcome) -> tuple[Check, ...]:
    if not (isinstance(recorded, Completed) and isinstance(again, Completed)):
        return ()
    peak = recorded.measurement.peak_bytes / GIB
    checks = [
        Check(
            name="peak memory",
            unit="GiB",
            digits=4,
            recorded=peak,
            again=again.measurement.peak_bytes / GIB,
            tolerance=PEAK_TOLERANCE * peak,
        )
    ]
    for metric in run.spec.facts.metrics[:1]:
        if metric.name not in recorded.scores or metric.name not in again.scores:
            continue
        score = recorded.scores[metric.name]
        shown = 0.5 * 10**-metric.digits
        checks.append(
            Check(
                name=metric.name,
                unit="",
                digits=metric.digits,
                recorded=score.value,
                again=again.scores[metric.name].value,
                tolerance=shown if score.stderr is None else INTERVAL * score.stderr,
            )
        )
    return tuple(checks)


def _tail(log: Path, lines: int = 10) -> tuple[str, ...]:
    """Return the last lines of a log that can be read; none if there is no log."""
    try:
        text: Sequence[str] = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ()
    return tuple(text[-lines:])
