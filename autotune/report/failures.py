"""Trials that did not complete, grouped by cause, with what to do about each cause."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autotune.core.knob import Knob
from autotune.core.outcome import (
    Completed,
    Crashed,
    Diverged,
    Outcome,
    OutOfMemory,
    Paused,
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
        fix: Of trials that needed too much memory, the smallest change after which one fits, from
            a trial that did; empty for other causes.
    """

    cause: str
    records: tuple[TrialRecord, ...]
    detail: str
    help: str
    fix: str = ""


def causes(
    records: Sequence[TrialRecord], run: str, options: str = "", knobs: Sequence[Knob] = ()
) -> list[Cause]:
    """Group trials that did not complete, or that completed over the limit, by cause.

    Args:
        records: Trials of a run.
        run: Its name, for the commands in the help.
        options: What has to be added to a command for it to find the run.
        knobs: Every knob, to find the smallest change that fits; none to leave that out.

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
            fix=_fix(members, records, knobs),
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
        case Paused():
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
        case Stopped(step=step) | Paused(step=step):
            return f"at step {step}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A trial that fits, and the steps that lead to it from one that does not."""

    record: TrialRecord
    steps: tuple[str, ...]


def smallest_change(
    record: TrialRecord, records: Sequence[TrialRecord], knobs: Sequence[Knob]
) -> Change | None:
    """Return the trial that fits and differs in the fewest knobs; the earlier of equal ones.

    Args:
        record: A trial that did not fit.
        records: Every trial of the run.
        knobs: Every knob, in order.
    """
    here = record.config.complete(knobs)
    changes = []
    for other in records:
        if other.feasible:
            there = other.config.complete(knobs)
            steps = tuple(
                f"{name} {value} → {there[name]}"
                for name, value in here.items()
                if value != there[name]
            )
            changes.append(Change(record=other, steps=steps))
    return min(changes, key=lambda change: len(change.steps), default=None)


def _fix(
    members: Sequence[TrialRecord], records: Sequence[TrialRecord], knobs: Sequence[Knob]
) -> str:
    if not knobs or not isinstance(members[0].outcome, OutOfMemory | Refused | Completed):
        return ""
    found = [(member, smallest_change(member, records, knobs)) for member in members]
    known = [(member, change) for member, change in found if change is not None]
    if not known:
        return "no trial of this run fits, so what would help is not known"
    member, change = min(known, key=lambda pair: len(pair[1].steps))
    need = format_gib(_outcome(change.record).measurement.footprint_bytes)
    which = f"trial {member.number}" if len(members) > 1 else "it"
    if not change.steps:
        return f"trial {change.record.number} is the same configuration and needed {need}"
    return (
        f"the smallest change after which {which} fits: {', '.join(change.steps)} "
        f"(trial {change.record.number}, {need})"
    )


def _over(needs: Sequence[int], limit: int, lead: str) -> str:
    if not needs:
        return f"the limit is {format_gib(limit)}"
    low, high = gib(min(needs)), gib(max(needs))
    span = low if low == high else f"{low} to {high}"
    return f"{lead}{span} GiB needed, the limit is {format_gib(limit)}"


def _help(records: Sequence[TrialRecord], run: str, options: str) -> str:
    first = f"{run}/{records[0].number}{options}"
    match _outcome(records[0]):
        case OutOfMemory() | Completed():
            return f"or raise the budget; `autotune show {first}` says where memory went"
        case Refused():
            return f"or raise the budget; `autotune show {first}` has the command that itemises it"
        case Crashed():
            return f"`autotune show {first}` has the traceback and the end of the log"
        case Diverged():
            return "lower the learning rate: --set learning_rate=0.3"
        case TimedOut():
            return f"`autotune show {first}` has the end of the log; fewer --steps take less time"
        case Stopped() | Paused():
            return f"`autotune resume {run}{options}` repeats what was interrupted"
