"""`autotune resume`: continue a run."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from autotune.cli.options import Common, RunName, Storage, whole_number
from autotune.cli.watch import finish, watching
from autotune.core.errors import BadValue
from autotune.core.units import parse_duration


def resume(
    run: RunName = None,
    /,
    *,
    trials: Annotated[str | None, Parameter(metavar="N|+N", show_default=False)] = None,
    time: Annotated[str | None, Parameter(metavar="TIME", show_default=False)] = None,
    repeats: Annotated[str | None, Parameter(metavar="off|auto|N", show_default=False)] = None,
    storage: Storage = None,
    address: Annotated[str | None, Parameter(metavar="ADDRESS", show_default=False)] = None,
    track: Annotated[str, Parameter(metavar="NAMES", show_default=False)] = "",
    common: Common = Common(),  # noqa: B008  (frozen; cyclopts fills in what was typed)
) -> int:
    """Continue a run where it stopped, or search on.

    Trials that were interrupted are repeated; all settings come from the run.

    Args:
        run: The run; by default the latest.
        trials: Most trials in all, such as 60, or so many more, such as +40.
        time: Most time in all, such as 90s, 30m or 2h.
        repeats: Train trials near the front with more seeds: auto, or how many each.
        storage: SQLAlchemy URL of the study database, if it is not in the run's folder.
        address: Of the Ray cluster, for a run that was on one.
        track: Also log every trial to tensorboard, mlflow or wandb, or several: tensorboard,mlflow.
        common: Options of every command.

    Returns:
        The exit status.
    """
    from autotune.tuner import resume as continue_run

    total, extra = parse_trials(trials)
    seconds = None if time is None else parse_duration(time)
    with watching(common) as observers:
        found = continue_run(
            run,
            trials=total,
            extra=extra,
            time=seconds,
            repeats=repeats,
            results=common.results,
            storage=storage,
            address=address,
            observers=observers,
            track=track,
        )
    return finish(found, common, storage)


def parse_trials(text: str | None) -> tuple[int | None, int]:
    """Read `60` as a total and `+40` as so many more.

    Returns:
        The total, None to keep the run's own, and how many to add.

    Raises:
        BadValue: If it is neither.
    """
    if text is None:
        return None, 0
    digits = text.removeprefix("+")
    if not digits.isdecimal():
        raise BadValue(
            f"'{text}' is not a number of trials",
            where="--trials",
            help="write 60 for sixty in all, or +40 for forty more",
        )
    number = whole_number("trials", int(digits), 1)
    return (None, number) if text.startswith("+") else (number, 0)
