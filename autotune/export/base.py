"""What an exporter is: it turns a trial into files, or says what it cannot express.

An exporter is a module with a constant `EXPORTER`. For each knob that it can express it has a
function in a table, which says why a value cannot be expressed, or nothing. `check` goes through
the knobs of a trial that are off neutral and raises one error with all that are left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from autotune.core.domains import Value
from autotune.core.errors import CannotExport, StorageError
from autotune.core.outcome import Completed
from autotune.core.record import TrialRecord
from autotune.core.registry import Registry
from autotune.core.units import GIB
from autotune.core.workload import RunSpec, Workload
from autotune.knobs import BUILTIN, knob
from autotune.storage.run import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A trial that is exported.

    Attributes:
        run: Name of its run.
        record: The trial.
        spec: What the run depends on.
        options: What has to be added to a command for it to find the run.
    """

    run: str
    record: TrialRecord
    spec: RunSpec
    options: str = ""

    @classmethod
    def of(cls, run: Run, number: int, options: str = "") -> Subject:
        """Return a trial of a run.

        Args:
            run: Its run.
            number: Which trial.
            options: What has to be added to a command for it to find the run.

        Raises:
            UnknownName: If there is none of that number.
        """
        return cls(run=run.name, record=run.trial(number), spec=run.spec, options=options)

    @property
    def name(self) -> str:
        """How the trial is typed: `qwen-16gb/17`."""
        return f"{self.run}/{self.record.number}"

    @property
    def workload(self) -> Workload:
        """What was trained."""
        return self.spec.facts.workload

    @property
    def title(self) -> str:
        """What differs from the baseline."""
        return self.record.config.describe(BUILTIN)

    @property
    def on_cuda(self) -> bool:
        """Whether it ran on a CUDA device."""
        return str(self.spec.device["kind"]) == "cuda"

    @property
    def recorded(self) -> str:
        """What was measured, as a sentence; empty if it did not complete."""
        outcome = self.record.outcome
        if not isinstance(outcome, Completed):
            return ""
        metric = self.spec.facts.metric
        peak = outcome.measurement.peak_bytes
        return (
            f"{metric.name} {outcome.scores[metric.name].value:.{metric.digits}f}, "
            f"peak memory {peak / GIB:.4f} GiB"
        )

    def value(self, name: str) -> Value:
        """Return the value of a knob, neutral ones included."""
        return self.record.config.get(name, knob(name).neutral)

    def number(self, name: str) -> float:
        """Return the value of a knob that is a number."""
        return float(self.value(name))

    @property
    def changed(self) -> Mapping[str, Value]:
        """Values that are off neutral, in the order of application."""
        config = self.record.config
        known = [known.name for known in BUILTIN if known.name in config]
        return {name: config[name] for name in [*known, *(n for n in config if n not in known)]}


Refusal: TypeAlias = "Callable[[Value, Subject], str]"
"""Says why a value of a knob cannot be expressed and what to do instead; empty if it can."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """What came of a trial.

    Attributes:
        files: Text of each file by its name; the first is the main one.
        notes: Sentences on what is not quite the same there.
        beside: Writes what goes beside these files into a folder.
    """

    files: Mapping[str, str]
    notes: tuple[str, ...] = ()
    beside: Callable[[Path], None] | None = None

    @property
    def main(self) -> str:
        """Text of the main file."""
        return next(iter(self.files.values()))

    @property
    def whole_folder(self) -> bool:
        """Whether it is more than one file."""
        return len(self.files) > 1 or self.beside is not None

    def write(self, output: Path) -> list[Path]:
        """Write everything.

        Args:
            output: A folder for several files, which is made; a file or a folder for one.

        Returns:
            The files that were written, but for those beside them.

        Raises:
            StorageError: If something is there already, or cannot be written.
        """
        try:
            if not self.whole_folder and not output.is_dir():
                output.parent.mkdir(parents=True, exist_ok=True)
                return [_write(output, self.main)]
            if self.whole_folder:
                output.mkdir(parents=True, exist_ok=True)
                if any(output.iterdir()):
                    raise _taken(output)
            written = [_write(output / name, text) for name, text in self.files.items()]
            if self.beside is not None:
                self.beside(output)
        except OSError as error:
            raise StorageError(
                f"'{output}' cannot be written: {error.strerror or error}",
                help="choose another place: --output FOLDER",
            ) from error
        return written


@dataclass(frozen=True, slots=True, kw_only=True)
class Exporter:
    """One target.

    Attributes:
        name: As typed after `--to`.
        help: What it writes, in a few words.
        make: Turns a trial into files; raises `CannotExport` if it cannot express it.
    """

    name: str
    help: str
    make: Callable[[Subject], Export] = field(repr=False)


EXPORTERS: Registry[Exporter] = Registry(
    "target",
    {
        "hf": "autotune.export.script:EXPORTER",
        "json": "autotune.export.document:EXPORTER",
        "accelerate": "autotune.export.accelerate:EXPORTER",
        "deepspeed": "autotune.export.deepspeed:EXPORTER",
        "torchtitan": "autotune.export.torchtitan:EXPORTER",
        "axolotl": "autotune.export.axolotl:EXPORTER",
        "llamafactory": "autotune.export.llamafactory:EXPORTER",
    },
    group="autotune.exporters",
    listing="autotune export --help",
)
"""Every target; other packages add theirs by the entry point group `autotune.exporters`."""


def check(subject: Subject, target: str, expressed: Mapping[str, Refusal]) -> None:
    """See that every knob of a trial can be expressed.

    Args:
        subject: The trial.
        target: What it is exported to, as sentences call it.
        expressed: What stands against a value, by knob.

    Raises:
        CannotExport: If something does, with a line for each knob.
    """
    lines = []
    for name, value in subject.changed.items():
        reason = expressed[name](value, subject) if name in expressed else _unknown(name)
        if reason:
            lines.append(f"{name} {value}: {reason}")
    if lines:
        settings = "a setting" if len(lines) == 1 else f"{len(lines)} settings"
        raise CannotExport(
            f"{target} cannot express {settings} of {subject.name}",
            context=lines,
            help=others(subject),
        )


def others(subject: Subject) -> str:
    """Return what can be done with a trial whatever a target cannot express."""
    typed = f"autotune export {subject.name}{subject.options}"
    return (
        f"`{typed} --to json` has everything\n"
        f"`{typed} --checkpoint FOLDER` trains it and keeps the model"
    )


def refuse_objective(subject: Subject, target: str, known: tuple[str, ...]) -> None:
    """See that a target trains for what the trial was trained for.

    Raises:
        CannotExport: If it does not.
    """
    objective = subject.workload.objective
    if objective not in known:
        raise CannotExport(
            f"{target} cannot express the objective {objective} of {subject.name}, only "
            f"{' and '.join(known)}",
            help=others(subject),
        )


def fine(value: Value, subject: Subject) -> str:
    """Say that nothing stands against any value."""
    return ""


def only(values: tuple[Value, ...], otherwise: str) -> Refusal:
    """Return what stands against all values but some.

    Args:
        values: Those that can be expressed.
        otherwise: Why others cannot, and what to do instead.
    """

    def refusal(value: Value, subject: Subject) -> str:
        return "" if value in values else otherwise

    return refusal


def always(reason: str) -> Refusal:
    """Return one sentence against every value."""

    def refusal(value: Value, subject: Subject) -> str:
        return reason

    return refusal


def _unknown(name: str) -> str:
    neutral = next((known.neutral for known in BUILTIN if known.name == name), None)
    return f"it has no such setting; search again with --set {name}={neutral}"


def _write(path: Path, text: str) -> Path:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise _taken(path) from error
    return path


def _taken(path: Path) -> StorageError:
    return StorageError(
        f"'{path}' exists, and nothing is ever overwritten",
        help="choose another place: --output FOLDER",
    )
