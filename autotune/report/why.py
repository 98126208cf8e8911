"""Why a trial needs less memory than the baseline: each knob's share, from trials that were run.

The best evidence is a trial that is the same but for one knob: what it needs more is what the knob
saves here. The next best are matched pairs elsewhere in the run that took the same step. Without
either, the trial is rehearsed with that knob put back, where that can be done. What knobs do
together is left open: shares need not add up to the whole.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from rich.console import RenderableType
from rich.text import Text

from autotune.core.config import Config
from autotune.core.domains import Value
from autotune.core.errors import AutotuneError
from autotune.core.knob import Knob, Numerics
from autotune.core.outcome import Completed, OutOfMemory, Refused
from autotune.core.record import Origin, TrialRecord
from autotune.core.units import GIB, format_gib
from autotune.report.effects import differing, knob_effects
from autotune.report.text import Column, Listing, make_table, signed
from autotune.storage.run import Run

_REHEARSED = (
    "Rehearsed is this trial with that knob put back to the baseline's value: counted without "
    "training."
)

Counted = Callable[[Config], int]
"""Returns the peak bytes of a configuration without training it; raises `AutotuneError` if not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one knob saves.

    Attributes:
        knob: Its name.
        before: The baseline's value.
        after: The trial's.
        saved_bytes: What the step saves; None if no trials tell.
        score: What it changes of the score; None if that is not known, 0 by promise if exact.
        exact: Whether the knob promises the same score.
        neighbour: The trial that is the same but for this knob; None if there is none.
        pairs: Matched pairs elsewhere, used if there is no neighbour.
        at_least: Whether the saving is a lower bound, as the neighbour ran out of memory.
        rehearsed: Whether the saving was counted without any training.
        reason: Why that cannot be done, as a sentence; empty unless it was tried.
    """

    knob: str
    before: Value
    after: Value
    saved_bytes: float | None = None
    score: float | None = None
    exact: bool = False
    neighbour: int | None = None
    pairs: int = 0
    at_least: bool = False
    rehearsed: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Why:
    """Each knob's share of what a trial saves.

    Attributes:
        number: The trial.
        peak_bytes: Its peak.
        baseline: Number of the baseline; None if it was not tried.
        baseline_bytes: What the baseline needs; 0 if that is not known.
        bound: How that is known: empty if measured, else `at least` or `a predicted`.
        shares: Every knob in which the two differ, the greatest saving first.
    """

    number: int
    peak_bytes: int
    baseline: int | None
    baseline_bytes: int
    bound: str
    shares: tuple[Share, ...]

    @property
    def saved_bytes(self) -> int:
        """What the trial saves against the baseline; below 0 if it needs more."""
        return self.baseline_bytes - self.peak_bytes if self.baseline_bytes else 0

    def part(self, share: Share) -> float | None:
        """Return a knob's share of the whole saving; None if either is not known."""
        if share.saved_bytes is None or self.saved_bytes <= 0:
            return None
        return share.saved_bytes / self.saved_bytes


def explain(run: Run, record: TrialRecord, knobs: Sequence[Knob]) -> Why:
    """Return each knob's share of what a trial saves against the baseline.

    Args:
        run: The run.
        record: One of its trials; it must have completed.
        knobs: Every knob.
    """
    assert isinstance(record.outcome, Completed)
    baseline = next((r for r in run.records if r.origin is Origin.BASELINE), None)
    start = baseline.config.complete(knobs) if baseline else {k.name: k.neutral for k in knobs}
    values = record.config.complete(knobs)
    shares = [
        _share(run, record, knob, start[knob.name], knobs)
        for knob in knobs
        if values[knob.name] != start[knob.name]
    ]
    needed, bound = _needed(baseline)
    return Why(
        number=record.number,
        peak_bytes=record.outcome.measurement.peak_bytes,
        baseline=baseline.number if baseline else None,
        baseline_bytes=needed,
        bound=bound,
        shares=tuple(sorted(shares, key=_by_saving)),
    )


def rehearsed(why: Why, config: Config, knobs: Sequence[Knob], counted: Counted) -> Why:
    """Return the shares with those that no trials tell rehearsed.

    Args:
        why: The shares.
        config: Of the trial.
        knobs: Every knob.
        counted: Counts the peak of a configuration without training it.
    """
    if all(share.saved_bytes is not None for share in why.shares):
        return why
    try:
        here = counted(config)
    except AutotuneError as error:
        unable = f"the trial cannot be rehearsed: {error.message}"
        shares = [s if s.saved_bytes is not None else replace(s, reason=unable) for s in why.shares]
        return replace(why, shares=tuple(shares))
    shares = []
    for share in why.shares:
        if share.saved_bytes is None:
            back = Config({**config, share.knob: share.before}, knobs)
            try:
                saved = counted(back) - here
                share = replace(share, saved_bytes=saved, rehearsed=True)  # noqa: PLW2901
            except AutotuneError as error:
                unable = f"{share.knob} cannot be put back alone: {error.message}"
                share = replace(share, reason=unable)  # noqa: PLW2901
        shares.append(share)
    return replace(why, shares=tuple(sorted(shares, key=_by_saving)))


def why_screen(
    run: Run, why: Why, knobs: Sequence[Knob], *, options: str = ""
) -> list[RenderableType]:
    """Return the shares as a screen.

    Args:
        run: The run.
        why: The shares.
        knobs: Every knob.
        options: What has to be added to a command for it to find the run.
    """
    record = run.trial(why.number)
    title = f"{run.name}/{why.number}  {record.config.describe(knobs)}"
    parts: list[RenderableType] = [Text(title, style="bold"), Text(_whole(why))]
    if why.shares:
        parts += [Text(), _table(run, why)]
    known = [share for share in why.shares if share.saved_bytes is not None]
    missing = [share for share in why.shares if share.saved_bytes is None]
    if known:
        parts += [Text(), Text(_sources(known))]
    if known and why.saved_bytes > 0:
        rest = 1 - sum(why.part(share) or 0.0 for share in known)
        parts += [Text(_rest(rest, missing))]
    elif missing:
        parts += [Text(), Text(_none(missing))]
    parts += [Text(reason) for reason in _reasons(missing)]
    rows = []
    if missing:
        rows.append(
            (
                estimate_command(run, record, without=missing[0].knob),
                f"predict it without {missing[0].knob}",
            )
        )
    rows.append((f"autotune show {run.name}/{why.number}{options}", "the trial in full"))
    return [*parts, Text(), Listing("Next", rows)]


def estimate_command(run: Run, record: TrialRecord, *, without: str = "") -> str:
    """Return the command that predicts and itemises a trial's memory.

    Args:
        run: Its run.
        record: The trial.
        without: A knob that is left neutral.
    """
    workload = run.spec.facts.workload
    words = ["autotune", "estimate", "--objective", workload.objective]
    words += ["--model", shlex.quote(workload.model)] if workload.model else []
    words += ["--data", shlex.quote(workload.data)] if workload.data else []
    for name, value in record.config.items():
        words += ["--set", shlex.quote(f"{name}={value}")] if name != without else []
    return " ".join(words)


def _share(
    run: Run, record: TrialRecord, knob: Knob, before: Value, knobs: Sequence[Knob]
) -> Share:
    after = record.config.complete(knobs)[knob.name]
    exact = knob.numerics is Numerics.EXACT
    neighbour = _neighbour(run, record, knob, before, knobs)
    if neighbour is not None:
        needed, bound = _needed(neighbour)
        assert record.outcome is not None
        return Share(
            knob=knob.name,
            before=before,
            after=after,
            saved_bytes=needed - record.outcome.measurement.peak_bytes,
            score=0.0 if exact else _change(run, neighbour, record),
            exact=exact,
            neighbour=neighbour.number,
            at_least=bool(bound),
        )
    for effect in knob_effects(run.records, run.metric, knobs):
        if effect.knob == knob.name and {effect.before, effect.after} == {before, after}:
            side = 1.0 if effect.after == after else -1.0
            return Share(
                knob=knob.name,
                before=before,
                after=after,
                saved_bytes=-side * effect.peak_bytes,
                score=0.0 if exact else side * effect.score,
                exact=exact,
                pairs=effect.pairs,
            )
    return Share(knob=knob.name, before=before, after=after, exact=exact)


def _neighbour(
    run: Run, record: TrialRecord, knob: Knob, before: Value, knobs: Sequence[Knob]
) -> TrialRecord | None:
    """Return the trial that differs in one knob only, where it has the baseline's value."""
    for other in run.records:
        alone = differing(other, record, knobs) == (knob.name,)
        if alone and other.config.get(knob.name, knob.neutral) == before and _needed(other)[0]:
            return other
    return None


def _needed(record: TrialRecord | None) -> tuple[int, str]:
    """Return what a trial needed, and how that is known."""
    match record.outcome if record else None:
        case Completed(measurement=measurement):
            return measurement.peak_bytes, ""
        case OutOfMemory(needed_bytes=needed) if needed:
            return needed, "at least"
        case Refused(needed_bytes=needed) if needed:
            return needed, "a predicted"
    return 0, ""


def _change(run: Run, before: TrialRecord, after: TrialRecord) -> float | None:
    old, new = before.score(run.metric), after.score(run.metric)
    return None if old is None or new is None else new.value - old.value


def _whole(why: Why) -> str:
    peak = format_gib(why.peak_bytes)
    if why.baseline == why.number:
        return f"This is the baseline; its peak is {peak}."
    if not why.baseline_bytes:
        return f"Its peak is {peak}; what the baseline needs is not known, so there are no shares."
    bound = f"{why.bound} " if why.bound else ""
    start = f"The baseline (trial {why.baseline}) needs {bound}{format_gib(why.baseline_bytes)}"
    if why.saved_bytes <= 0:
        return f"{start}, this one {peak}: it saves nothing."
    share = why.saved_bytes / why.baseline_bytes
    return f"{start}, this one {peak}: it saves {format_gib(why.saved_bytes)} ({share:.0%})."


def _table(run: Run, why: Why) -> RenderableType:
    columns = (
        Column("knob"),
        Column("saves GiB", "right"),
        Column("of all", "right"),
        Column(run.metric.name, "right"),
        Column("known from"),
    )
    return make_table(columns, [_row(run, why, share) for share in why.shares])


def _row(run: Run, why: Why, share: Share) -> tuple[str, ...]:
    step = f"{share.knob} {share.before} → {share.after}"
    score = "exact" if share.exact else "–"
    if share.score is not None and not share.exact:
        score = signed(share.score, run.metric.digits)
    if share.saved_bytes is None:
        return (step, "–", "–", score, "–")
    part = why.part(share)
    saved = share.saved_bytes / GIB
    shown = f"{'≥ ' if share.at_least else ''}{signed(saved, 3 if abs(saved) < 1 else 2)}"
    source = f"trial {share.neighbour}"
    if share.rehearsed:
        source = "rehearsed"
    elif share.neighbour is None:
        source = f"{share.pairs} pair{'s' * (share.pairs > 1)}"
    of_all = "–" if part is None else f"{signed(100 * part, 0)}%".removeprefix("+")
    return (step, shown, of_all, score, source)


def _sources(known: Sequence[Share]) -> str:
    near = any(share.neighbour is not None for share in known)
    far = any(share.pairs for share in known)
    counted = any(share.rehearsed for share in known)
    texts = ["A trial named here is the same but for that knob."] if near else []
    texts += ["Pairs are trials elsewhere that took the same step."] if far else []
    texts += [_REHEARSED] if counted else []
    return " ".join(texts)


def _by_saving(share: Share) -> float:
    return math.inf if share.saved_bytes is None else -share.saved_bytes


def _reasons(missing: Sequence[Share]) -> list[str]:
    """Say why what is missing was not rehearsed either, each reason once."""
    reasons = dict.fromkeys(share.reason for share in missing if share.reason)
    return [f"{reason[0].upper()}{reason[1:].rstrip('.')}." for reason in reasons]


def _rest(rest: float, missing: Sequence[Share]) -> str:
    text = f"{abs(rest):.0%} of the saving is "
    if rest < -0.005:
        return f"These savings overlap: alone, they come to {abs(rest):.0%} more than the whole."
    if not missing:
        return f"{text}what these knobs do together."
    names = ", ".join(share.knob for share in missing)
    return f"{text}due to {names}, or to what knobs do together: no two trials tell these apart."


def _none(missing: Sequence[Share]) -> str:
    names = ", ".join(share.knob for share in missing)
    return f"No two trials that differ in one knob only tell what {names} save on their own."


def why_values(why: Why) -> list[Mapping[str, object]]:
    """Return the shares as values of a document."""
    return [
        {
            "knob": share.knob,
            "before": share.before,
            "after": share.after,
            "saved_gib": None if share.saved_bytes is None else share.saved_bytes / GIB,
            "share": why.part(share),
            "score": share.score,
            "exact": share.exact,
            "neighbour": share.neighbour,
            "pairs": share.pairs,
            "at_least": share.at_least,
            "rehearsed": share.rehearsed,
            "reason": share.reason or None,
        }
        for share in why.shares
    ]
