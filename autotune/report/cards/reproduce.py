"""Can I repeat it: the command, the space, hashes, versions, seeds, and every trial as data."""

from __future__ import annotations

import csv
import io
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autotune.core.units import format_gb
from autotune.report.cards.card import Card, Table
from autotune.report.cards.findings import Findings
from autotune.report.document import SCHEMA, plain, run_head, trial_document
from autotune.storage.run import Run

KEY, TITLE, SHORT = "reproduce", "Reproduce", "Reproduce"
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reproduce(Card):
    """What is needed to repeat the run.

    Attributes:
        command: The command that searches again.
        space: The space file as it was.
        data: Every trial as a JSON text.
        csv: Every trial as a CSV text.
        name: Name of the run, for files.
    """

    command: str
    space: str
    data: str
    csv: str
    name: str


def reproduce_card(findings: Findings) -> Reproduce:
    """Return what is needed to repeat the run."""
    run = findings.run
    return Reproduce(
        key=KEY,
        title=TITLE,
        short=SHORT,
        sentences=(
            "This command searches again with the same seed; on another machine, or with other "
            "versions, numbers may differ.",
        ),
        tables=(_facts(run),),
        command=search_command(run),
        space=run.spec.space_source.strip(),
        data=json.dumps(trials_document(findings), ensure_ascii=False, allow_nan=False),
        csv=trials_csv(findings),
        name=run.name,
    )


def search_command(run: Run) -> str:
    """Return the command line that searches again."""
    spec = run.spec
    workload = spec.facts.workload
    options: dict[str, object] = {
        "budget": format_bytes(spec.budget_bytes),
        "objective": workload.objective,
        "model": workload.model,
        "data": workload.data,
        "teacher": workload.teacher,
        "text-column": workload.text_column,
        "label-column": workload.label_column,
        "steps": workload.steps,
        "space": spec.space,
        "trials": spec.trials,
        "time": None if spec.time_limit is None else f"{spec.time_limit:g}s",
        "sampler": spec.sampler,
        "seed": spec.seed,
    }
    words = ["autotune", "run"]
    for name, value in options.items():
        words += [] if value is None else [f"--{name}", shlex.quote(str(value))]
    words += ["--trust-remote-code"] if workload.trust_remote_code else []
    for knob, value in spec.overrides.items():
        words += ["--set", shlex.quote(f"{knob}={value}")]
    return " ".join(words)


def format_bytes(amount: int) -> str:
    """Return bytes as a budget that is read back to the same number: `16GB`."""
    units = (("GB", 10**9), ("GiB", 2**30), ("MB", 10**6), ("MiB", 2**20), ("B", 1))
    name, size = next((name, size) for name, size in units if amount % size == 0)
    return f"{amount // size}{name}"


def trials_document(findings: Findings) -> dict[str, Any]:
    """Return the run and every trial as a JSON document."""
    run, knobs = findings.run, findings.knobs
    trials = [
        {**trial_document(record, knobs), "values": run.knob_values(record.number)}
        for record in run.records
    ]
    document = plain({"schema": SCHEMA, "run": run_head(run), "trials": trials})
    assert isinstance(document, dict)
    return document


def trials_csv(findings: Findings) -> str:
    """Return one row per trial: how it ended, scores, memory, and the value of every knob.

    Texts that a spreadsheet would take for a formula get an apostrophe before them.
    """
    rows = [_flat(trial) for trial in trials_document(findings)["trials"]]
    names = list(dict.fromkeys(name for row in rows for name in row))
    file = io.StringIO()
    writer = csv.DictWriter(file, names, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    return file.getvalue()


def _flat(trial: Mapping[str, Any]) -> dict[str, object]:
    row = {k: v for k, v in trial.items() if k not in ("config", "scores", "values")}
    for name, score in trial["scores"].items():
        row |= {name: score["value"], f"{name}.stderr": score["stderr"]}
    return row | {f"knob.{name}": value for name, value in trial["values"].items()}


def _cell(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def _facts(run: Run) -> Table:
    spec = run.spec
    facts, workload = spec.facts, spec.facts.workload
    rows = [
        ("run", f"{run.name}, {run.status}"),
        ("budget", f"{format_gb(spec.budget_bytes)}, {spec.headroom:.0%} headroom"),
        ("objective", workload.objective),
        ("model", f"{facts.model.name}, {facts.model.parameters:,} parameters"),
        ("data", facts.data),
        ("seed of search and trainings", f"{spec.seed} and {workload.seed}"),
        ("sampler, runner", f"{spec.sampler}, {spec.runner}"),
        ("device", ", ".join(f"{k} {v}" for k, v in spec.device.items() if v not in (None, ""))),
        ("threads, jobs", f"{spec.threads}, {spec.jobs}"),
        ("hash of the run", spec.fingerprint),
        ("hash of the workload", workload.fingerprint),
        ("hash of the data", facts.data_fingerprint),
        ("versions", ", ".join(f"{name} {version}" for name, version in spec.versions.items())),
    ]
    return Table(caption="What the run depends on", columns=("what", "value"), rows=tuple(rows))
