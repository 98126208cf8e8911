"""`autotune run`: search under a budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from cyclopts import Group, Parameter

from autotune.cli.options import Common, Flag
from autotune.cli.watch import finish, watching
from autotune.core.errors import BadValue
from autotune.core.units import parse_duration
from autotune.plan import DEFAULT_OBJECTIVE, DEFAULT_TRIALS, Settings
from autotune.search.proposers import DEFAULT_SAMPLER

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
    sampler: Annotated[str, Parameter(group=HOW, metavar="NAME")] = DEFAULT_SAMPLER,
    seed: Annotated[int, Parameter(group=HOW)] = 0,
    dry_run: Annotated[bool, Parameter(group=HOW), Flag] = False,
    verify: Annotated[bool, Parameter(group=HOW), Flag] = False,
    device: Annotated[
        str | None, Parameter(group=WHERE, metavar="DEVICE", env_var="AUTOTUNE_DEVICE")
    ] = None,
    jobs: Annotated[int | None, Parameter(group=WHERE)] = None,
    name: Annotated[str | None, Parameter(group=WHERE, metavar="NAME")] = None,
    storage: Annotated[str | None, Parameter(group=WHERE, metavar="URL")] = None,
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
        trials: Most trials.
        time: Most time, such as 90s, 30m or 2h; trials that run by then are finished.
        until: `stable` ends the search when a further trial is expected to add next to nothing.
        sampler: frontier, tpe, nsga2, gp, random or qmc.
        seed: Of the search and of every training.
        dry_run: Say what would be done, and from where each setting comes; train nothing.
        verify: Run the trials worth looking at again at the end, and see that their numbers hold.
        device: cpu, cuda or cuda:1; by default the first accelerator, or else the CPU.
        jobs: Trials side by side; by default one per accelerator, or as memory and cores allow.
        name: Name of the run and of its folder; by default the objective and the time.
        storage: SQLAlchemy URL of the study database; by default SQLite in the run's folder.
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
        jobs=jobs,
        device=device,
    )
    if dry_run:
        from autotune.cli.dry_run import show_plan

        return show_plan(settings, common)
    return _search(settings, name, storage, common, verify=verify)


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
    settings: Settings, name: str | None, storage: str | None, common: Common, *, verify: bool
) -> int:
    from autotune.tuner import start

    with watching(common) as observers:
        found = start(
            settings, name=name, results=common.results, storage=storage, observers=observers
        )
    return finish(found, common, storage, verify=verify)
