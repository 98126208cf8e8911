"""`autotune replay`: a trial again, and whether its numbers hold."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from autotune.cli.options import Common, Flag, Storage
from autotune.core.errors import UsageError
from autotune.repeat import Check, Repeat, repeat_trial
from autotune.report.document import SCHEMA
from autotune.report.text import Column, make_table
from autotune.report.trial import snapshot_sentence
from autotune.storage.places import snapshot_path
from autotune.storage.run import Run, find_run

DIFFERS = 5
"""Exit status when a number does not hold."""


def replay(
    trial: Annotated[str | None, Parameter(name="RUN/TRIAL", show_default=False)] = None,
    /,
    *,
    seeds: int = 1,
    snapshot: Annotated[bool, Flag] = False,
    storage: Storage = None,
    common: Common = Common(),  # noqa: B008  (frozen; cyclopts fills in what was typed)
) -> int:
    """Run a trial again from its record, and say whether its numbers hold.

    Peak memory must come out within 1 %, the score within the interval of its standard error.

    Args:
        trial: A trial, such as qwen-16gb/17.
        seeds: How many trainings; those after the first have other seeds and show the spread.
        snapshot: On CUDA, keep torch's own snapshot of one step for pytorch.org/memory_viz.
        storage: SQLAlchemy URL of the study database, if it is not in the run's folder.
        common: Options of every command.

    Returns:
        0 if all numbers hold, 5 if one does not.
    """
    run, number = one_trial(trial, common, storage, verb="replay")
    file = snapshot_path(run.folder, number) if snapshot else None
    repeat = repeat_trial(
        run, number, seeds=seeds, snapshot=file, told=lambda text: common.say(Text(text))
    )
    kept = file if file is not None and file.is_file() else None
    document = {**repeat_document(run, repeat), "snapshot": None if kept is None else str(kept)}
    screen = list(repeat_screen(run, repeat))
    if file is not None:
        none = "There is no snapshot: the trial ended before its first steady step."
        screen += [Text(), Text(none if kept is None else snapshot_sentence(kept))]
    common.show(document, *screen)
    return 0 if repeat.holds else DIFFERS


def replay_picks(run: Run, common: Common) -> list[Repeat]:
    """Run the trials again that are worth looking at first, each once."""
    picks = run.picks()
    chosen = (picks.best_accuracy, picks.knee, picks.least_memory)
    numbers = dict.fromkeys(record.number for record in chosen if record is not None)

    def say(number: int) -> Repeat:
        return repeat_trial(
            run, number, told=lambda text: common.say(Text(f"{run.name}/{number}  {text}"))
        )

    return [say(number) for number in numbers]


def one_trial(
    text: str | None, common: Common, storage: str | None, *, verb: str
) -> tuple[Run, int]:
    """Open what `RUN/17` names.

    Raises:
        UsageError: If no trial is named.
    """
    run, number = find_run(text, results=common.results, storage=storage)
    if number is None:
        knee = run.picks().knee
        example = f"{run.name}/{knee.number if knee else 0}"
        raise UsageError(
            f"which trial of {run.name}?",
            help=f"autotune {verb} {example}{common.where(storage)}",
        )
    return run, number


def repeat_screen(run: Run, repeat: Repeat) -> Sequence[RenderableType]:
    """Return what became of a trial: a table, the spread over seeds, and a sentence."""
    name = f"{run.name}/{repeat.record.number}"
    parts: list[RenderableType] = []
    if repeat.checks:
        parts += [checks_table(repeat), Text()]
    if len(repeat.outcomes) > 1 and (spread := _spread(run, repeat)):
        parts.append(Text(spread))
    parts += [Text(note) for note in repeat.notes]
    if not repeat.ended_alike:
        recorded = repeat.record.outcome
        was = recorded.summary if recorded else "unknown"
        parts.append(Text(f"{name} was {was}, and now: {repeat.outcomes[0].summary}."))
        parts += [Text(f"   {line}") for line in repeat.log]
    elif not repeat.checks:
        parts.append(Text(f"{name} ended as recorded: {repeat.outcomes[0].summary}."))
    wrong = [check.name for check in repeat.checks if not check.holds]
    if repeat.checks:
        verdict = f"{' and '.join(wrong)} of {name} did not come out again."
        parts.append(Text(verdict if wrong else f"The numbers of {name} hold."))
    return parts


def checks_table(repeat: Repeat) -> Table:
    """Return each number as recorded, again, the difference, and whether it holds."""
    columns = (
        Column(""),
        Column("recorded", "right"),
        Column("again", "right"),
        Column("difference", "right"),
        Column("may differ by", "right"),
        Column("holds"),
    )
    return make_table(columns, [_row(check) for check in repeat.checks])


def repeat_document(run: Run, repeat: Repeat) -> dict[str, Any]:
    """Return the document of a trial that ran again."""
    metric = run.metric.name
    return {
        "schema": SCHEMA,
        "trial": f"{run.name}/{repeat.record.number}",
        "holds": repeat.holds,
        "recorded": repeat.record.outcome.tag if repeat.record.outcome else None,
        "again": [outcome.tag for outcome in repeat.outcomes],
        "checks": [
            {
                "name": check.name,
                "unit": check.unit,
                "recorded": check.recorded,
                "again": check.again,
                "difference": check.difference,
                "tolerance": check.tolerance,
                "holds": check.holds,
            }
            for check in repeat.checks
        ],
        "seeds": repeat.scores(metric),
        "notes": list(repeat.notes),
    }


def _row(check: Check) -> list[str]:
    shown = f".{check.digits}f"
    name = f"{check.name}, {check.unit}" if check.unit else check.name
    return [
        name,
        format(check.recorded, shown),
        format(check.again, shown),
        format(check.difference, f"+{shown}"),
        f"±{check.tolerance:{shown}}",
        "yes" if check.holds else "no",
    ]


def _spread(run: Run, repeat: Repeat) -> str:
    scores, digits = repeat.scores(run.metric.name), run.metric.digits
    if len(scores) < 2:
        return ""
    mean, spread = statistics.fmean(scores), statistics.stdev(scores)
    return (
        f"Over {len(scores)} seeds, {run.metric.name} is {mean:.{digits}f} on average, with a "
        f"standard deviation of {spread:.{digits}f}."
    )
