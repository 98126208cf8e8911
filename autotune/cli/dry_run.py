"""`autotune run --dry-run`: what would be done, and where each setting comes from."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TypedDict

from rich.text import Text

from autotune.cli.options import Common
from autotune.cli.settings import source_of
from autotune.cluster import remote_runner
from autotune.core.units import format_duration
from autotune.plan import Plan, Settings, local_runner, make_plan
from autotune.report.document import SCHEMA
from autotune.report.spaces import SpaceDocument, space_document, space_screen
from autotune.report.text import Column, make_table
from autotune.storage.places import results_path
from autotune.tuner import warmed

_SOURCES = {
    "space": "the space",
    "objective": "the objective",
    "device": "this device",
    "default": "default",
}


class SettingDocument(TypedDict):
    """One setting, its value as text, and where it came from."""

    name: str
    value: str
    source: str


class DryRunDocument(TypedDict):
    """`run --dry-run`."""

    schema: int
    settings: list[SettingDocument]
    space: SpaceDocument


def show_plan(settings: Settings, common: Common, storage: str | None = None) -> int:
    """Resolve settings as a run would, and show the result. Nothing is trained or kept.

    Args:
        settings: What was typed.
        common: Options of every command.
        storage: SQLAlchemy URL of the study database, where an earlier run may be.

    Returns:
        The exit status.

    Raises:
        AutotuneError: Whatever a run would refuse.
    """
    results = results_path(common.results)
    plan, _ = warmed(resolve(settings), results, storage)
    rows = [(name, value, _source(name, plan)) for name, value in _values(plan)]
    document: DryRunDocument = {
        "schema": SCHEMA,
        "settings": [{"name": n, "value": v, "source": s} for n, v, s in rows],
        "space": space_document(plan.space, plan.context),
    }
    columns = (Column("setting"), Column("value", folds=True), Column("comes from"))
    common.show(
        document,
        make_table(columns, rows),
        Text(),
        space_screen(plan.space, plan.context),
        Text(),
        Text("Nothing was trained. The same command without --dry-run searches."),
    )
    return 0


def resolve(settings: Settings) -> Plan:
    """Return the plan of a run; prepared data goes to a folder that is removed again."""
    runner = remote_runner(settings) or local_runner(settings)
    try:
        with tempfile.TemporaryDirectory(prefix="autotune-") as folder:
            return make_plan(settings, runner, name="dry-run", cache=Path(folder))
    finally:
        runner.close()


def _values(plan: Plan) -> list[tuple[str, str]]:
    spec, workload, device = plan.spec, plan.spec.facts.workload, plan.context.device
    limit = "none" if spec.time_limit is None else format_duration(spec.time_limit)
    values: list[tuple[str, object]] = [
        ("budget", plan.budget.describe()),
        ("objective", workload.objective),
        ("model", spec.facts.model.name),
        ("data", spec.facts.data),
        ("text_column", workload.text_column),
        ("label_column", workload.label_column),
        ("trust_remote_code", "yes" if workload.trust_remote_code else None),
        ("steps", workload.steps),
        ("global_batch", workload.global_batch),
        ("sequence_length", workload.sequence_length),
        ("eval_examples", workload.eval_examples),
        ("space", spec.space),
        *((f"set {knob}", value) for knob, value in spec.overrides.items()),
        ("trials", spec.trials),
        ("time", limit),
        ("sampler", spec.sampler),
        ("until", spec.until or None),
        ("rungs", spec.rungs or None),
        ("repeats", spec.repeats or None),
        ("warm_start", spec.warm_start or None),
        ("seed", spec.seed),
        ("device", f"{device.label} {device.name}".strip()),
        ("devices", spec.devices if spec.devices > 1 else None),
        ("jobs", spec.jobs),
    ]
    return [(name, str(value)) for name, value in values if value is not None]


def _source(name: str, plan: Plan) -> str:
    source = plan.sources.get(name, "objective" if name in ("model", "data") else "default")
    if source != "given":
        return _SOURCES.get(source, source)
    option = "--set" if name.startswith("set ") else f"--{name.replace('_', '-')}"
    typed = source_of(option)
    return {"cli": "command line", "env": "environment", "default": "given"}.get(typed, typed)
