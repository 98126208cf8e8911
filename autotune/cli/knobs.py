"""`autotune knobs`: does every knob do what its name says, on this machine?"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from autotune.ablation import Bench, Difference, broken_promises, cases
from autotune.cli.options import Common
from autotune.core.errors import BadValue
from autotune.core.workload import Workload
from autotune.knobs import BUILTIN
from autotune.knobs import knob as find_knob
from autotune.plan import DEFAULT_OBJECTIVE, Settings, context_of, local_runner
from autotune.report.document import plain
from autotune.report.knobs import check_document, check_screen
from autotune.runners.devices import library_versions, pick_device

app = App(name="knobs", help="Measure what every knob does on this machine.")

_COMMON = Common()
PROMISE_BROKEN = 1


@app.command(name="check")
def check(
    names: Annotated[Sequence[str], Parameter(name="KNOB", show_default=False)] = (),
    /,
    *,
    objective: Annotated[str, Parameter(metavar="NAME")] = DEFAULT_OBJECTIVE,
    model: Annotated[str | None, Parameter(metavar="MODEL")] = None,
    data: Annotated[str | None, Parameter(metavar="DATA")] = None,
    steps: Annotated[int, Parameter(show_default=False)] = 0,
    seeds: int = 1,
    output: Annotated[Path | None, Parameter(metavar="FILE", show_default=False)] = None,
    device: Annotated[
        str | None, Parameter(metavar="DEVICE", env_var="AUTOTUNE_DEVICE", show_default=False)
    ] = None,
    common: Common = _COMMON,
) -> int:
    """Train with one knob off neutral at a time, and say what it did.

    Args:
        names: Knobs to check; by default all.
        objective: What to train for.
        model: A folder or hub name; by default the objective's own small model.
        data: A file or folder; by default the objective's own small data.
        steps: Optimizer steps of a training; by default what the objective says.
        seeds: Trainings of each lossy value.
        output: Also write the JSON document to this file.
        device: cpu, cuda or cuda:1; by default the first accelerator, or else the CPU.
        common: Options of every command.

    Returns:
        The exit status: 1 if a knob does not do what its name says.
    """
    chosen = [find_knob(name).name for name in names]
    if seeds < 1:
        raise BadValue(f"seeds must be at least 1, but got {seeds}", where="--seeds")
    if output is not None and output.exists():
        raise BadValue(f"{output} exists already", where="--output", help="name another file")
    workload = Workload(objective=objective.replace("-", "_"), model=model, data=data, steps=steps)
    found, about, metric = _measure(workload, chosen, seeds, device, common)
    document = check_document(found, about)
    if output is not None:
        output.write_text(json.dumps(plain(document), indent=1, ensure_ascii=False) + "\n")
    common.show(document, *check_screen(found, metric))
    return PROMISE_BROKEN if broken_promises(found) else 0


def _measure(
    workload: Workload, names: Sequence[str], seeds: int, device: str | None, common: Common
) -> tuple[list[Difference], dict[str, object], str]:
    place = pick_device(device)
    runner = local_runner(Settings(budget="auto", device=device, jobs=1))
    with tempfile.TemporaryDirectory(prefix="autotune-") as name:
        folder = Path(name)
        try:
            facts = runner.describe(workload, folder / "cache")
            bench = Bench(
                runner=runner,
                facts=facts,
                device=place,
                threads=place.cores,
                folder=folder,
                seeds=seeds,
            )
            chosen = cases(BUILTIN, context_of(facts, place), names)
            found = bench.measure(
                chosen, lambda done, total, label: common.say(f"{done}/{total}  {label}")
            )
        finally:
            runner.close()
    about: dict[str, object] = {
        "workload": {
            "objective": facts.workload.objective,
            "model": facts.model.name,
            "data": facts.data,
            "steps": facts.workload.steps,
        },
        "metric": facts.metric.name,
        "seeds": seeds,
        "device": place.to_json(),
        "versions": library_versions(),
    }
    return found, about, facts.metric.name
