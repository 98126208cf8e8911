"""`--checkpoint`: a trial trained in full again, and its model in a folder for plain transformers.

It is the recorded trial, run again in a process of its own, which keeps what it deploys. So its
numbers are compared as `autotune replay` compares them, and a folder that does not hold what was
found says so.
"""

from __future__ import annotations

from pathlib import Path

from autotune.core.errors import AutotuneError, CannotExport, StorageError
from autotune.core.outcome import Completed
from autotune.export.base import Subject
from autotune.knobs.architectures import RECURRENT
from autotune.repeat import Repeat, Told, repeat_trial
from autotune.runners.base import Runner
from autotune.storage.run import Run


def train_and_keep(
    run: Run,
    number: int,
    folder: Path,
    *,
    runner: Runner | None = None,
    told: Told | None = None,
    options: str = "",
) -> Repeat:
    """Train a trial again and keep its model.

    Args:
        run: Its run.
        number: Which trial.
        folder: For the model; must not be there yet, or be empty.
        runner: Runs the trial; None for this machine.
        told: Hears what is being done.
        options: What has to be added to a command for it to find the run.

    Returns:
        How its numbers compare with the recorded ones.

    Raises:
        CannotExport: If plain transformers could not load the model.
        StorageError: If there is something in the folder.
        AutotuneError: If the training does not complete.
    """
    subject = Subject.of(run, number, options)
    check_loads_plainly(subject)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StorageError(
            f"'{folder}' exists, and nothing is ever overwritten",
            help="choose another folder: --checkpoint FOLDER",
        )
    repeat = repeat_trial(run, number, keep=folder.absolute(), runner=runner, told=told)
    outcome = repeat.outcomes[0]
    if not isinstance(outcome, Completed):
        raise AutotuneError(
            f"{subject.name} did not complete this time: {outcome.summary}",
            context=repeat.log,
            help=f"`autotune replay {subject.name}{options}` says how it differs",
        )
    return repeat


def check_loads_plainly(subject: Subject) -> None:
    """See that plain transformers can load what a trial saves.

    Raises:
        CannotExport: If it cannot.
    """
    family = subject.spec.facts.model.family
    if family in RECURRENT:
        raise CannotExport(
            f"plain transformers cannot load the model of {subject.name}: an {family.upper()} is a "
            "plain network of torch, which has no such folder",
            help=f"autotune export {subject.name}{subject.options} --to json   has its settings",
        )
