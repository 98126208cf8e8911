"""`autotune export`: a configuration as something that runs elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.text import Text

from autotune.cli.options import Common, Storage
from autotune.cli.replay import checks_table, one_trial
from autotune.core.errors import UsageError
from autotune.export.base import EXPORTERS, Export, Subject
from autotune.report.document import SCHEMA
from autotune.report.text import Listing
from autotune.storage.run import Run


def export(
    trial: Annotated[str | None, Parameter(name="RUN/TRIAL", show_default=False)] = None,
    /,
    *,
    to: Annotated[str | None, Parameter(metavar="TARGET", show_default=False)] = None,
    output: Annotated[
        Path | None,
        Parameter(name=["--output", "-o"], metavar="FILE|FOLDER", show_default=False),
    ] = None,
    checkpoint: Annotated[Path | None, Parameter(metavar="FOLDER", show_default=False)] = None,
    storage: Storage = None,
    common: Common = Common(),  # noqa: B008  (frozen; cyclopts fills in what was typed)
) -> int:
    """Turn a configuration into something that runs elsewhere.

    A setting that the target cannot express is an error that names it; none is left out.

    Args:
        trial: A trial, such as qwen-16gb/17.
        to: hf (a training script without autotune), accelerate, deepspeed, torchtitan, axolotl,
            llamafactory or json.
        output: Where it goes; by default a new folder, or for a single file standard output.
        checkpoint: Train it in full, and keep the model there for plain transformers.
        storage: SQLAlchemy URL of the study database, if it is not in the run's folder.
        common: Options of every command.

    Returns:
        The exit status.
    """
    found, number = one_trial(trial, common, storage, verb="export")
    if (to is None) == (checkpoint is None):
        raise UsageError(
            "say what to export to, or where to keep a trained model: one of --to and --checkpoint",
            help=f"autotune export {found.name}/{number}{common.where(storage)} --to hf\n"
            f"known targets: {', '.join(EXPORTERS.names())}",
        )
    if checkpoint is not None:
        return _train(found, number, checkpoint, common, common.where(storage))
    assert to is not None
    subject = Subject.of(found, number, common.where(storage))
    made = EXPORTERS.load(to).make(subject)
    for note in made.notes:
        common.say(Text(f"note  {note}"))
    return hand_out(subject, to, made, output, common)


def hand_out(subject: Subject, to: str, made: Export, output: Path | None, common: Common) -> int:
    """Write the files of an export, or print the only one.

    Args:
        subject: What was exported.
        to: The target.
        made: What came of it.
        output: Where it goes; None for a new folder, or standard output.
        common: Options of every command.

    Returns:
        The exit status.
    """
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "trial": subject.name,
        "to": to,
        "notes": list(made.notes),
        "files": dict(made.files),
        "written": [],
    }
    if output is None and not made.whole_folder:
        if common.json:
            common.print_document(document)
        else:
            sys.stdout.write(made.main)  # a file: not to be wrapped to the screen
        return 0
    place = output or Path(f"{subject.run}-{subject.record.number}-{to}")
    written = made.write(place)
    document["written"] = [str(path) for path in written]
    lines = [(str(path), "") for path in written]
    if to == "hf":
        lines = [(f"python {written[0]}", "train, evaluate, print score and peak memory")]
    common.show(document, Text(f"Written to {place}."), Text(), Listing("Next", lines))
    return 0


def _train(run: Run, number: int, folder: Path, common: Common, options: str) -> int:
    """Train a trial in full and keep its model."""
    from autotune.export.checkpoint import train_and_keep

    def told(text: str) -> None:
        common.say(Text(text))

    repeat = train_and_keep(run, number, folder, told=told, options=options)
    document = {
        "schema": SCHEMA,
        "trial": f"{run.name}/{number}",
        "checkpoint": str(folder),
        "holds": repeat.holds,
        "notes": list(repeat.notes),
    }
    load = [(f'AutoModel.from_pretrained("{folder}")', "with plain transformers")]
    common.show(
        document,
        Text(f"The model is in {folder}."),
        Text(),
        checks_table(repeat),
        Text(),
        Listing("Next", load),
    )
    return 0
