"""`autotune show`: a run, one trial of it, or what failed."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Annotated

from cyclopts import Parameter
from rich.text import Text

from autotune.cli.options import Common, Flag, Storage
from autotune.core.config import Config
from autotune.core.errors import UsageError
from autotune.core.outcome import Completed
from autotune.core.record import TrialRecord
from autotune.core.units import GIB
from autotune.knobs import BUILTIN
from autotune.memory.rehearsal import CannotRehearse
from autotune.report.document import (
    SCHEMA,
    FailedDocument,
    ShowDocument,
    WhyDocument,
    run_document,
    run_head,
    trial_details,
)
from autotune.report.failures import causes
from autotune.report.summary import summary
from autotune.report.trial import causes_screen, trial_screen
from autotune.report.why import Why, explain, rehearsed, why_screen, why_values
from autotune.storage.run import Run, find_run

_PATIENCE_SECONDS = 60.0
"""Time after which no further rehearsal begins."""


def show(
    run: Annotated[str | None, Parameter(name="RUN/TRIAL", show_default=False)] = None,
    /,
    *,
    failed: Annotated[bool, Flag] = False,
    why: Annotated[bool, Flag] = False,
    storage: Storage = None,
    common: Common = Common(),  # noqa: B008  (frozen; cyclopts fills in what was typed)
) -> None:
    """Show a run, one trial, or what failed and why.

    Args:
        run: A run, or a trial of it such as qwen-16gb/17; by default the latest run.
        failed: What did not fit or finish, grouped by cause, and what to do about it.
        why: Of a trial: each knob's share of what it saves, from trials that were run, else from
            rehearsals.
        storage: SQLAlchemy URL of the study database, if it is not in the run's folder.
        common: Options of every command.
    """
    found, number = find_run(run, results=common.results, storage=storage)
    options = common.where(storage)
    if failed and why:
        raise UsageError("--failed is about a run, --why about a trial", help="give one of them")
    if why:
        _show_why(found, number, common, options)
    elif failed:
        if number is not None:
            raise UsageError(
                "--failed is about a whole run, not about one trial",
                help=f"autotune show {found.name} --failed{options}",
            )
        _show_failed(found, common, options)
    elif number is None:
        screen = summary(found, BUILTIN, width=common.out.width, options=options)
        common.show(run_document(found, BUILTIN), screen)
    else:
        record = found.trial(number)
        document: ShowDocument = {
            "schema": SCHEMA,
            "run": run_head(found),
            "trial": trial_details(found, record, BUILTIN),
        }
        common.show(document, trial_screen(found, record, BUILTIN, options=options))


def _show_why(run: Run, number: int | None, common: Common, options: str) -> None:
    if number is None:
        knee = run.picks().knee
        example = f"{run.name}/{knee.number if knee else 17}"
        raise UsageError("--why is about one trial", help=f"autotune show {example} --why{options}")
    record = run.trial(number)
    if not isinstance(record.outcome, Completed):
        raise UsageError(
            f"trial {number} did not complete, so there is no saving to explain",
            help=f"autotune show {run.name}/{number}{options}",
        )
    found = _rehearsed(run, record, explain(run, record, BUILTIN), common)
    document: WhyDocument = {
        "schema": SCHEMA,
        "run": run_head(run),
        "trial": number,
        "peak_gib": found.peak_bytes / GIB,
        "baseline": found.baseline,
        "baseline_gib": found.baseline_bytes / GIB or None,
        "shares": why_values(found),
    }
    common.show(document, *why_screen(run, found, BUILTIN, options=options))


def _rehearsed(run: Run, record: TrialRecord, why: Why, common: Common) -> Why:
    """Rehearse the shares that no trials tell, one trial with one knob put back for each."""
    from autotune.estimate import every_value
    from autotune.memory.predict import counted
    from autotune.memory.rehearsal_worker import RehearsalWorker
    from autotune.plan import context_of
    from autotune.repeat import rehearsal_spec
    from autotune.storage.rows import read_device

    context = context_of(run.spec.facts, read_device(run.spec.device), run.spec.devices)
    until = time.monotonic() + _PATIENCE_SECONDS
    with RehearsalWorker() as worker:

        def count(config: Config) -> int:
            spec = rehearsal_spec(run, replace(record, config=config))
            if reasons := every_value().reasons(config, context):
                raise CannotRehearse(reasons[0])
            if time.monotonic() > until:
                raise CannotRehearse("rehearsing the others took too long")
            common.say(Text(f"rehearsing {config.describe(BUILTIN)}", style="dim"))
            return counted(spec, worker).bytes

        return rehearsed(why, record.config, BUILTIN, count)


def _show_failed(run: Run, common: Common, options: str) -> None:
    groups = causes(run.records, run.name, options, BUILTIN)
    document: FailedDocument = {
        "schema": SCHEMA,
        "run": run_head(run),
        "causes": [
            {
                "cause": group.cause,
                "trials": [record.number for record in group.records],
                "detail": group.detail,
                "help": group.help,
                "fix": group.fix,
            }
            for group in groups
        ],
    }
    common.show(document, causes_screen(groups, run, options=options))
