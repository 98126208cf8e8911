"""`autotune run`: search under a budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from cyclopts import Group, Parameter

from autotune.cli.options import STORAGE_VARIABLE, Common, Flag
from autotune.cli.watch import finish, watching
from autotune.cluster import ENGINES
from autotune.core.errors import BadValue
from autotune.core.units import parse_duration
from autotune.plan import DEFAULT_OBJECTIVE, DEFAULT_TRIALS, LOCAL, Settings
from autotune.search.proposers import DEFAULT_SAMPLER
from autotune.search.rungs import OFF

BUDGET = Group("Budget", sort_key=0)
WHAT = Group("What is trained", sort_key=1)
HOW = Group("How it is searched", sort_key=2)
WHERE = Group("Where it runs and is kept", sort_key=3)
Unset = Parameter(show_default=False)


def run(
    *,
    budget: Annotated[str, Parameter(group=BUDGET, metavar="SIZE")],
    objective: Annotated[str, Parameter(group=WHAT, metavar="NAME")] = DEFAULT_OBJECTIVE,
    model: Annotated[str | None, Parameter(group=WHAT, metavar="MODEL")] = None,
    data: Annotated[str | None, Parameter(group=WHAT, metavar="DATA")] = None,
    teacher: Annotated[str | None, Parameter(group=WHAT, metavar="MODEL")] = None,
    text_column: Annotated[str | None, Parameter(group=WHAT, metavar="COLUMN")] = None,
    label_column: Annotated[str | None, Parameter(group=WHAT, metavar="COLUMN")] = None,
    trust_remote_code: Annotated[bool, Parameter(group=WHAT), Flag] = False,
    steps: Annotated[int, Parameter(group=WHAT), Unset] = 0,
    space: Annotated[str, Parameter(group=HOW, metavar="NAME|FILE")] = "default",
    set_: Annotated[
        Sequence[str],
        Parameter(name="--set", group=HOW, metavar="KNOB=VALUE", negative="", show_default=False),
    ] = (),
    trials: Annotated[int, Parameter(group=HOW)] = DEFAULT_TRIALS,
    time: Annotated[str | None, Parameter(group=HOW, metavar="TIME")] = None,
    until: Annotated[str, Parameter(group=HOW, metavar="stable", show_default=False)] = "",
    rungs: Annotated[str, Parameter(group=HOW, metavar="off|auto|SHARES")] = OFF,
    repeats: Annotated[str, Parameter(group=HOW, metavar="off|auto|N")] = OFF,
    warm_start: Annotated[str | None, Parameter(group=HOW, metavar="RUN")] = None,
    sampler: Annotated[str, Parameter(group=HOW, metavar="NAME")] = DEFAULT_SAMPLER,
    seed: Annotated[int, Parameter(group=HOW)] = 0,
    engine: Annotated[str, Parameter(group=HOW, metavar="NAME")] = ENGINES[0],
    dry_run: Annotated[bool, Parameter(group=HOW), Flag] = False,
    verify: Annotated[bool, Parameter(group=HOW), Flag] = False,
    device: Annotated[
        str | None, Parameter(group=WHERE, metavar="DEVICE", env_var="AUTOTUNE_DEVICE")
    ] = None,
    devices: Annotated[int, Parameter(group=WHERE)] = 1,
    jobs: Annotated[int | None, Parameter(group=WHERE)] = None,
    runner: Annotated[str, Parameter(group=WHERE, metavar="local|ray")] = LOCAL,
    address: Annotated[
        str | None, Parameter(group=WHERE, metavar="ADDRESS", show_default=False)
    ] = None,
    name: Annotated[str | None, Parameter(group=WHERE, metavar="NAME")] = None,
    storage: Annotated[
        str | None, Parameter(group=WHERE, metavar="URL", env_var=STORAGE_VARIABLE)
    ] = None,
    track: Annotated[str, Parameter(group=WHERE, metavar="NAMES", show_default=False)] = "",
    common: Common = Common(),  # noqa: B008  (frozen; cyclopts fills in what was typed)
) -> int:
    """Search for the best configurations under a memory budget.

    Every trial trains for real, in a process of its own and under the budget; out of memory, a
    crash or a hang is a result, not the end of the search. Ctrl-C stops safely.

    Args:
        budget: Memory for one trial: 16GB, 14.9GiB, or `auto` for what the device has free.
        objective: What to train for; `autotune spaces objectives` lists them.
        model: A folder or hub name; by default the objective's own small model.
        data: A file or folder; by default the objective's own small data.
        teacher: A model for distillation to learn from; by default the trained one, unpruned.
        text_column: Column of the text in the data.
        label_column: Column of the label in the data.
        trust_remote_code: Allow code that comes with the model to run.
        steps: Optimizer steps of a trial; by default what the space or the objective says.
        space: Name or file of the search space; `autotune spaces ls` lists them.
        set_: Narrow a knob to one value or several: precision=bf16, lora.rank=8,16.
        trials: Most trials; with rungs most full trainings, of which a paused trial is a part.
        time: Most time, such as 90s, 30m or 2h; trials that run by then are finished.
        until: `stable` ends the search when a further trial is expected to add next to nothing.
        rungs: Pause trials after shares of their training, and go on with the best: auto, 1/9,1/3.
        repeats: Train trials near the front with more seeds at the end: auto, or how many each.
        warm_start: An earlier run of the same objective, whose trials the search learns from first.
        sampler: frontier, tpe, nsga2, gp, random or qmc.
        seed: Of the search and of every training.
        engine: autotune, or tune to let Ray Tune drive; tune:asha or tune:median with a scheduler.
        dry_run: Say what would be done, and from where each setting comes; train nothing.
        verify: Run the trials worth looking at again at the end, and see that their numbers hold.
        device: cpu, cuda or cuda:1; by default the first accelerator, or else the CPU.
        devices: Devices, or processes on the CPU, that one trial may use; the budget is for each.
        jobs: Trials side by side; by default one per accelerator, or as memory and cores allow.
        runner: local for this machine, ray for every node of a Ray cluster.
        address: Of the Ray cluster: auto or host:port; by default one is started on this machine.
        name: Name of the run and of its folder; by default the objective and the time.
        storage: SQLAlchemy URL of the study database; by default SQLite in the run's folder.
        track: Also log every trial to tensorboard, mlflow or wandb, or several: tensorboard,mlflow.
        common: Options of every command.

    Returns:
        The exit status.
    """
    settings = Settings(
        budget=budget,
        objective=objective,
        model=model,
        data=data,
        teacher=teacher,
        text_column=text_column,
        label_column=label_column,
        trust_remote_code=trust_remote_code,
        space=space,
        overrides=parse_overrides(set_),
        trials=trials,
        time=None if time is None else parse_duration(time),
        steps=steps,
        seed=seed,
        sampler=sampler,
        until=until,
        rungs=rungs,
        repeats=repeats,
        warm_start=warm_start,
        jobs=jobs,
        device=device,
        devices=devices,
        runner=runner,
        address=address,
        engine=engine,
    )
    if dry_run:
        from autotune.cli.dry_run import show_plan

        return show_plan(settings, common, storage)
    return _search(settings, name, storage, track, common, verify=verify)


def parse_overrides(typed: Sequence[str]) -> dict[str, str]:
    """Read `knob=value` pairs; of a knob that is set twice, the last one counts.

    Raises:
        BadValue: If one has no `=`.
    """
    found: dict[str, str] = {}
    for text in typed:
        knob, equals, value = text.partition("=")
        if not (knob.strip() and equals and value.strip()):
            raise BadValue(
                f"'{text}' does not say which knob gets which value",
                where="--set",
                help="write --set knob=value, such as --set precision=bf16\n"
                "`autotune spaces knobs` lists all knobs",
            )
        found[knob.strip()] = value.strip()
    return found


def _search(
    settings: Settings,
    name: str | None,
    storage: str | None,
    track: str,
    common: Common,
    *,
    verify: bool,
) -> int:
    from autotune.trackers.choice import with_trackers
    from autotune.tuner import start

    with watching(common) as watchers:
        found = start(
            settings,
            name=name,
            results=common.results,
            storage=storage,
            observers=with_trackers(watchers, track),
        )
    return finish(found, common, storage, verify=verify)
