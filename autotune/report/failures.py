"""Trials that did not complete, grouped by cause, with what to do about each cause."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autotune.core.outcome import (
    Completed,
    Crashed,
    Diverged,
    Outcome,
    OutOfMemory,
    Refused,
    Stopped,
    TimedOut,
)
from autotune.core.record import TrialRecord
from autotune.core.units import format_duration, format_gib, gib


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """Trials that ended for one cause.

    Attributes:
        cause: What it was: `out of memory in first`.
        records: The trials, by number.
        detail: Numbers or words from the trials themselves.
        help: What to type or change.
    """

    cause: str
    records: tuple[TrialRecord, ...]
    detail: str
    help: str


def causes(records: Sequence[TrialRecord], run: str, options: str = "") -> list[Cause]:
    """Group trials that did not complete, or that completed over the limit, by cause.

    Args:
        records: Trials of a run.
        run: Its name, for the commands in the help.
        options: What has to be added to a command for it to find the run.

    Returns:
        Causes, the most frequent one first.
    """
    groups: dict[str, list[TrialRecord]] = {}
    for record in records:
        cause = _cause(record)
        if cause is not None:
            groups.setdefault(cause, []).append(record)
    found = [
        Cause(
            cause=cause,
            records=tuple(members),
            detail=_detail(members),
            help=_help(members, run, options),
        )
        for cause, members in groups.items()
    ]
    return sorted(found, key=lambda cause: (-len(cause.records), cause.records[0].number))


def failed(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Return the trials that `causes` would group."""
    return [record for record in records if _cause(record) is not None]


def _cause(record: TrialRecord) -> str | None:
    match record.outcome:
        case None:
            return None
        case Completed():
            return None if record.feasible else "completed, but over the budget"
        case OutOfMemory(phase=phase):
            return f"out of memory in {phase}"
        case Refused():
            return "refused: the rehearsal is over the budget"
        case Crashed(signal=signal, error=error, exit_code=code):
            return f"crashed: {signal or error.partition(chr(10))[0] or f'exit code {code}'}"
        case Diverged():
            return "diverged: the loss became infinite or not a number"
        case TimedOut():
            return "ran into the time limit for one trial"
        case Stopped(reason=reason):
            return f"stopped: {reason or 'on request'}"


def _outcome(record: TrialRecord) -> Outcome:
    assert record.outcome is not None
    return record.outcome


def _detail(records: Sequence[TrialRecord]) -> str:
    match _outcome(records[0]):
        case OutOfMemory():
            needs = [o.needed_bytes for r in records if isinstance(o := r.outcome, OutOfMemory)]
            return _over([need for need in needs if need > 0], records[0].limit_bytes, "at least ")
        case Refused():
            needs = [o.needed_bytes for r in records if isinstance(o := r.outcome, Refused)]
            return _over(needs, records[0].limit_bytes, "") + "; no device time was spent"
        case Completed():
            needs = [_outcome(r).measurement.footprint_bytes for r in records]
            return _over(needs, records[0].limit_bytes, "")
        case Crashed(traceback=traceback):
            lines = traceback.strip().splitlines()
            return lines[-2].strip() if len(lines) > 1 else ""
        case Diverged():
            steps = [o.step for r in records if isinstance(o := r.outcome, Diverged)]
            return f"first at step {min(steps)}"
        case TimedOut(limit_seconds=limit, phase=phase):
            return f"after {format_duration(limit)}, last heard of in {phase or 'start'}"
        case Stopped(step=step):
            return f"at step {step}"


def _over(needs: Sequence[int], limit: int, lead: str) -> str:
    if not needs:
        return f"the limit is {format_gib(limit)}"
    low, high = gib(min(needs)), gib(max(needs))
    span = low if low == high else f"{low} to {high}"
    return f"{lead}{span} GiB needed, the limit is {format_gib(limit)}"


def _help(records: Sequence[TrialRecord], run: str, options: str) -> str:
    first = f"{run}/{records[0].number}{options}"
    match _outcome(records[0]):
        case OutOfMemory() | Completed() | Refused():
            return f"these need a larger budget; `autotune show {first}` says where memory went"
        case Crashed():
            return f"`autotune show {first}` has the traceback and the end of the log"
        case Diverged():
            return "lower the learning rate: --set learning_rate=0.3"
        case TimedOut():
            return f"`autotune show {first}` has the end of the log; fewer --steps take less time"
        case Stopped():
            return f"`autotune resume {run}{options}` repeats what was interrupted"
