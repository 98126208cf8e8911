"""`autotune estimate`: how much memory would this configuration need?"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import Group, Parameter

from autotune.cli.options import Common, Flag, whole_number
from autotune.cli.run import parse_overrides
from autotune.core.config import Config
from autotune.core.context import Device
from autotune.core.errors import BadValue, NothingFits
from autotune.estimate import (
    Asked,
    Estimator,
    budget_for,
    configuration,
    held_against,
    refuse_blocked,
)
from autotune.memory.algebra import Algebra
from autotune.memory.predict import Estimate
from autotune.memory.rehearsal_worker import RehearsalWorker
from autotune.plan import Settings, context_of, local_runner
from autotune.report.estimate import estimate_document, estimate_screen
from autotune.runners.device_table import find_device, is_here
from autotune.runners.probe import LocalProber, measure

WHAT = Group("What is trained", sort_key=0)
HOW = Group("How it is trained", sort_key=1)
WHERE = Group("Where", sort_key=2)
Unset = Parameter(show_default=False)


def estimate(
    *,
    objective: Annotated[str | None, Parameter(group=WHAT, metavar="NAME")] = None,
    model: Annotated[str | None, Parameter(group=WHAT, metavar="MODEL")] = None,
    data: Annotated[str | None, Parameter(group=WHAT, metavar="DATA")] = None,
    text_column: Annotated[str | None, Parameter(group=WHAT, metavar="COLUMN")] = None,
    label_column: Annotated[str | None, Parameter(group=WHAT, metavar="COLUMN")] = None,
    teacher: Annotated[str | None, Parameter(group=WHAT, metavar="MODEL")] = None,
    trust_remote_code: Annotated[bool, Parameter(group=WHAT), Flag] = False,
    set_: Annotated[
        Sequence[str],
        Parameter(name="--set", group=HOW, metavar="KNOB=VALUE", negative="", show_default=False),
    ] = (),
    batch: Annotated[int | None, Parameter(group=HOW, metavar="N")] = None,
    sequence_length: Annotated[int | None, Parameter(group=HOW, metavar="N")] = None,
    budget: Annotated[str | None, Parameter(group=WHERE, metavar="SIZE")] = None,
    device: Annotated[
        str | None, Parameter(group=WHERE, metavar="DEVICE", env_var="AUTOTUNE_DEVICE")
    ] = None,
    world: Annotated[int, Parameter(group=WHERE, metavar="N")] = 1,
    layout: Annotated[
        str | None, Parameter(group=HOW, metavar="LAYOUT", show_default=False)
    ] = None,
    probe: Annotated[bool, Parameter(group=WHERE), Flag] = False,
    common: Common = Common(),  # noqa: B008  (frozen; cyclopts fills in what was typed)
) -> int:
    """Predict the memory of one configuration, without running it and without a GPU.

    The training is rehearsed on tensors without values. A model may be a folder with a config.json
    and nothing else; where no data is given beside it, random data of the right shapes is used.
    Loading the model is left out: what it takes depends on its files, and --probe measures it.

    Args:
        objective: What to train for; by default what the model was made for.
        model: A folder with config.json, or a hub name; by default the objective's own.
        data: A file or folder.
        text_column: Column of the text in the data.
        label_column: Column of the label in the data.
        teacher: A model for distillation to learn from; it and the model must have their weights.
        trust_remote_code: Allow code that comes with the model to run.
        set_: One value of a knob: precision=bf16; knobs that are not set stay neutral.
        batch: Sequences per optimizer step; by default the objective's.
        sequence_length: Tokens per sequence; by default the objective's.
        budget: Say whether it fits: 16GB, 14.9GiB, or `auto` for what the device has.
        device: cpu, cuda, or one that is not here: A100-80GB, H200, RTX4090.
        world: Devices that train together; the estimate is for each of them.
        layout: How: ddp, zero1, zero2, zero3, or tensor=2,pipeline=4,data=zero1 for a product.
        probe: Train a few steps on this device and measure; model and data as for `autotune run`.
        common: Options of every command.

    Returns:
        The exit status: 3 if it does not fit the budget.
    """
    place = find_device(device)
    if probe:
        check_here(place)
    asked = Asked(
        objective=objective,
        model=model,
        data=data,
        text_column=text_column,
        label_column=label_column,
        teacher=teacher,
        trust_remote_code=trust_remote_code,
        trains=probe,
        global_batch=0 if batch is None else whole_number("batch", batch, 1),
        sequence_length=0
        if sequence_length is None
        else whole_number("sequence-length", sequence_length, 1),
    )
    allowed = budget_for(budget, place)
    ranks = whole_number("world", world, 1)
    config = configuration(parse_overrides(set_) | laid_out(ranks, layout))
    with estimating(asked, place, common, devices=ranks) as estimator:
        refuse_blocked(config, estimator.context)
        if probe:
            common.say("training a few steps")
            found = _probed(estimator, config)
            verdict = held_against(found, allowed) if allowed else None
        else:
            common.say("rehearsing on tensors without values")
            limit = allowed.limit_bytes if allowed else None
            found = estimator.predict(config, limit_bytes=limit)
            verdict = estimator.judge(found, allowed) if allowed else None
    shown = (found, estimator.facts, place, verdict)
    common.show(estimate_document(*shown), *estimate_screen(*shown))
    return NothingFits.exit_status if verdict and not verdict.fits else 0


def laid_out(world: int, layout: str | None) -> dict[str, str]:
    """Return the knobs of a layout that was typed: `zero3`, or `tensor=2,data=zero1`."""
    found = {} if world == 1 else {"layout.ranks": str(world)}
    for part in (layout or "").split(","):
        name, given, value = part.strip().partition("=")
        if name:
            found[f"layout.{name}" if given else "layout.data"] = value if given else name
    return found


def check_here(place: Device) -> None:
    """See that something can run on a device.

    Raises:
        BadValue: If it is known by name only.
    """
    if not is_here(place):
        raise BadValue(
            f"a probe runs on this machine, which has no {place.name}",
            where="--probe",
            help="without --probe it is predicted",
        )


def _probed(estimator: Estimator, config: Config) -> Estimate:
    """Measure a configuration with all that the device has free."""
    place = estimator.context.device
    spec = estimator.spec(config, place.free_bytes)
    log = str(Path(estimator.cache).with_name("probe.log"))
    with LocalProber() as prober:
        return measure(replace(spec, threads=place.cores, log=log), prober)


@contextmanager
def estimating(
    asked: Asked, place: Device, common: Common, *, devices: int = 1
) -> Iterator[Estimator]:
    """Look at model and data while the process that rehearses starts.

    Args:
        asked: What is trained.
        place: What it is predicted for.
        common: Options of every command.
        devices: How many of them train together.

    Yields:
        An estimator, as long as its process lives.
    """
    common.say("starting torch and transformers, which takes some seconds")
    with RehearsalWorker() as worker, tempfile.TemporaryDirectory(prefix="autotune-") as name:
        worker.start()
        runner = local_runner(Settings(budget="auto", device="cpu", jobs=1))
        try:
            cache = Path(name) / "cache"
            facts = runner.describe(asked.workload(), cache)
        finally:
            runner.close()
        yield Estimator(
            rehearser=Algebra(worker),
            context=context_of(facts, place, devices),
            facts=facts,
            cache=str(cache),
            say=common.say,
        )
