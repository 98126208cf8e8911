"""`autotune plan`: which layout for these devices?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import Group, Parameter
from rich.text import Text

from autotune.cli.estimate import estimating
from autotune.cli.export import hand_out
from autotune.cli.options import Common, Flag, whole_number
from autotune.cli.run import parse_overrides
from autotune.core.budget import Budget
from autotune.core.config import Config
from autotune.core.context import Context, Device
from autotune.core.domains import Value
from autotune.core.errors import BadValue, NothingFits, UsageError
from autotune.core.record import TrialRecord
from autotune.core.workload import RunSpec
from autotune.estimate import Asked, Estimator, configuration, every_value
from autotune.export.base import EXPORTERS, Subject
from autotune.knobs import BUILTIN
from autotune.parallel.layouts import legal_layouts
from autotune.parallel.pace import Work
from autotune.parallel.planning import Layouts, Planned, plan_layouts
from autotune.parallel.rates import rates_of
from autotune.report.layouts import layouts_document, layouts_screen
from autotune.runners.device_table import find_device
from autotune.runners.devices import library_versions

WHAT = Group("What is trained", sort_key=0)
HOW = Group("How it is trained", sort_key=1)
WHERE = Group("Where", sort_key=2)

PATIENCE_SECONDS = 120


def plan(
    *,
    devices: Annotated[int, Parameter(group=WHERE, metavar="N")],
    device: Annotated[
        str | None, Parameter(group=WHERE, metavar="DEVICE", env_var="AUTOTUNE_DEVICE")
    ] = None,
    device_memory: Annotated[str | None, Parameter(group=WHERE, metavar="SIZE")] = None,
    model: Annotated[str | None, Parameter(group=WHAT, metavar="MODEL")] = None,
    objective: Annotated[str | None, Parameter(group=WHAT, metavar="NAME")] = None,
    data: Annotated[str | None, Parameter(group=WHAT, metavar="DATA")] = None,
    trust_remote_code: Annotated[bool, Parameter(group=WHAT), Flag] = False,
    set_: Annotated[
        Sequence[str],
        Parameter(name="--set", group=HOW, metavar="KNOB=VALUE", negative="", show_default=False),
    ] = (),
    batch: Annotated[int | None, Parameter(group=HOW, metavar="N")] = None,
    sequence_length: Annotated[int | None, Parameter(group=HOW, metavar="N")] = None,
    top: Annotated[int, Parameter(group=HOW, metavar="N")] = 5,
    patience: Annotated[int, Parameter(group=HOW, metavar="SECONDS")] = PATIENCE_SECONDS,
    to: Annotated[str | None, Parameter(metavar="TARGET", show_default=False)] = None,
    pick: Annotated[int, Parameter(metavar="N")] = 1,
    output: Annotated[
        Path | None, Parameter(name=["--output", "-o"], metavar="FOLDER", show_default=False)
    ] = None,
    common: Common = Common(),  # noqa: B008  (frozen; cyclopts fills in what was typed)
) -> int:
    """Say which layouts of a training fit some devices, fastest first.

    Memory is that of a rehearsal, rank by rank, and no device is needed. Time is predicted from
    operations, bytes and links, and is there to put layouts in order.

    Args:
        devices: How many devices there are.
        device: Of which kind: cpu, cuda, or one that is not here, such as A100-80GB.
        device_memory: How much of each may be used; by default all of it.
        model: A folder with config.json, or a hub name; by default the objective's own.
        objective: What to train for; by default what the model was made for.
        data: A file or folder; without it random data of the right shapes is used.
        trust_remote_code: Allow code that comes with the model to run.
        set_: One value of a knob that every layout has: precision=bf16, layout.tensor=8.
        batch: Sequences per optimizer step; by default the objective's.
        sequence_length: Tokens per sequence; by default the objective's.
        top: Layouts to show.
        patience: Most seconds to spend on rehearsals.
        to: torchtitan, accelerate, deepspeed or json: write the configuration of one layout.
        pick: Which of the layouts shown that is.
        output: Where it goes; by default a new folder, or for a single file standard output.
        common: Options of every command.

    Returns:
        The exit status: 3 if no layout fits.
    """
    place = find_device(device)
    budget = _budget(device_memory, place)
    asked = Asked(
        objective=objective,
        model=model,
        data=data,
        trust_remote_code=trust_remote_code,
        global_batch=0 if batch is None else whole_number("batch", batch, 1),
        sequence_length=0
        if sequence_length is None
        else whole_number("sequence-length", sequence_length, 1),
    )
    fixed = dict(configuration(parse_overrides(set_)))
    with estimating(asked, place, common) as estimator:
        context = replace(estimator.context, devices=whole_number("devices", devices, 1))
        candidates = list(legal_layouts(every_value(), context, fixed, devices))
        if not candidates:
            raise _no_layout(context, fixed, devices)
        common.say(f"rehearsing {len(candidates)} legal layouts, fastest first")
        workload = estimator.facts.workload
        found = plan_layouts(
            Work(
                model=estimator.facts.model,
                global_batch=workload.global_batch,
                tokens=workload.sequence_length,
            ),
            rates_of(place),
            lambda config: estimator.predict(config, limit_bytes=budget.limit_bytes),
            candidates=candidates,
            limit_bytes=budget.limit_bytes,
            most=whole_number("top", top, 1),
            patience=whole_number("patience", patience, 1),
        )
    if to is not None and found.fitting:
        subject = _subject(_picked(found, pick), estimator, budget, devices)
        made = EXPORTERS.load(to).make(subject)
        for note in made.notes:
            common.say(Text(f"note  {note}"))
        return hand_out(subject, to, made, output, common)
    shown = (found, estimator.facts, place, devices, budget)
    common.show(layouts_document(*shown), *layouts_screen(*shown))
    return 0 if found.fitting else NothingFits.exit_status


def _budget(typed: str | None, place: Device) -> Budget:
    if typed is None:
        return Budget(total_bytes=place.total_bytes)
    return Budget.parse(typed)


def _no_layout(context: Context, fixed: Mapping[str, Value], devices: int) -> BadValue:
    """Say why, by what stands against the plainest layout of all."""
    plainest = Config({**fixed, "layout.ranks": devices}, BUILTIN)
    reason = next(iter(every_value().reasons(plainest, context)), "nothing divides them")
    return BadValue(
        f"no layout of {devices} devices is legal: {reason}",
        where="--devices",
        help="try another number of --devices, another --batch, or other values after --set\n"
        "`autotune guide parallel` says what ranks may share",
    )


def _picked(found: Layouts, pick: int) -> Planned:
    if not 1 <= pick <= len(found.fitting):
        raise UsageError(
            f"there is no layout {pick}, {len(found.fitting)} fit", help="write --pick 1"
        )
    return found.fitting[pick - 1]


def _subject(planned: Planned, estimator: Estimator, budget: Budget, devices: int) -> Subject:
    """Return a planned layout as exporters take a trial."""
    spec = RunSpec(
        name="plan",
        facts=estimator.facts,
        space="plan",
        space_source="",
        budget_bytes=budget.total_bytes,
        headroom=budget.headroom,
        sampler="",
        seed=0,
        trials=0,
        time_limit=None,
        trial_limit=0.0,
        jobs=1,
        threads=1,
        device=estimator.context.device.to_json(),
        devices=devices,
        versions=library_versions(),
    )
    return Subject(run="plan", record=TrialRecord(number=0, config=planned.config), spec=spec)
