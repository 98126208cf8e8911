"""From what the user typed to everything that a run depends on.

`Settings` is what was typed, `make_plan` resolves it: the device, the budget, the space with its
overrides, the workload with the objective's defaults filled in. `Plan.sources` remembers where each
value came from, for `run --dry-run`. Nothing is trained, and nothing is written but prepared data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from autotune.core.budget import Budget
from autotune.core.context import Context, Device
from autotune.core.errors import BadValue, BlockedConfiguration
from autotune.core.space import Space, load_space, parse_space
from autotune.core.units import format_gb, format_gib
from autotune.core.workload import RunSpec, Workload, WorkloadFacts
from autotune.knobs import BUILTIN
from autotune.runners.base import Elsewhere, Runner
from autotune.runners.devices import (
    detect_devices,
    installed_libraries,
    library_versions,
    pick_device,
)
from autotune.runners.local import LocalRunner
from autotune.search.proposers import DEFAULT_SAMPLER, check_sampler
from autotune.search.rungs import OFF, checked_rungs
from autotune.search.seeds import checked_repeats

DEFAULT_OBJECTIVE = "text_classification"
DEFAULT_TRIALS = 20
DEFAULT_TRIAL_SECONDS = 3600.0
LOCAL = "local"
"""The runner of trials on this machine."""
FIRST_LOOK_SECONDS = 240.0
"""Time for a search on an objective's own model and data, unless trials or time are given: it is
there to be looked at, and ends within five minutes on two cores."""
UNTIL_STABLE = "stable"
"""Search until a further trial is expected to add next to nothing."""

_TRAINING = ("steps", "global_batch", "sequence_length", "eval_examples")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a user may choose; see `autotune.tune` for what each means."""

    budget: str | Budget
    objective: str = DEFAULT_OBJECTIVE
    model: str | None = None
    data: str | None = None
    teacher: str | None = None
    text_column: str | None = None
    label_column: str | None = None
    trust_remote_code: bool = False
    space: str = "default"
    overrides: Mapping[str, str] = field(default_factory=dict)
    trials: int = DEFAULT_TRIALS
    time: float | None = None
    steps: int = 0
    seed: int = 0
    sampler: str = DEFAULT_SAMPLER
    jobs: int | None = None
    device: str | None = None
    devices: int = 1
    trial_seconds: float = DEFAULT_TRIAL_SECONDS
    until: str = ""
    rungs: str = OFF
    repeats: str = OFF
    warm_start: str | None = None
    runner: str = LOCAL
    address: str | None = None
    engine: str = "autotune"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A resolved run, ready to start.

    Attributes:
        spec: Everything that the run depends on.
        space: The narrowed space.
        context: Device, model and libraries that configurations are judged against.
        budget: The budget.
        devices: One for each slot.
        sources: Where each setting came from: `"given"`, `"space"`, `"objective"`, `"default"`,
            `"device"`.
    """

    spec: RunSpec
    space: Space
    context: Context
    budget: Budget
    devices: tuple[Device, ...]
    sources: Mapping[str, str]


def local_runner(settings: Settings) -> LocalRunner:
    """Return a runner on this machine with as many slots as devices or memory and cores allow.

    Raises:
        BadValue: If the budget is malformed or larger than the device, or `jobs` is below 1.
        UnknownName: If there is no such device.
    """
    device = pick_device(settings.device)
    slots = len(_devices(settings, resolve_budget(settings.budget, device)))
    return LocalRunner(slots, preload_for(device.kind))


def make_plan(settings: Settings, runner: Runner, *, name: str, cache: Path) -> Plan:
    """Resolve settings into a plan.

    Args:
        settings: What the user chose.
        runner: Asks the objective to look at model and data.
        name: Of the run.
        cache: Where prepared data goes.

    Returns:
        The plan.

    Raises:
        AutotuneError: Whatever is wrong with the settings, the space, the model or the data.
    """
    remote = runner if isinstance(runner, Elsewhere) else None
    device = weakest(remote.devices) if remote else pick_device(settings.device)
    budget = resolve_budget(settings.budget, device)
    _check_counts(settings)
    check_sampler(settings.sampler)
    _check_until(settings)
    rungs = checked_rungs(settings.rungs, settings.engine)
    repeats = checked_repeats(settings.repeats, settings.engine)
    space = load_space(settings.space, BUILTIN).narrowed(settings.overrides)
    facts = runner.describe(_workload(settings, space), cache)
    devices = remote.devices if remote else _devices(settings, budget)[: runner.slots]
    spec = RunSpec(
        name=name,
        facts=facts,
        space=space.name,
        space_source=space.source,
        overrides=dict(settings.overrides),
        budget_bytes=budget.total_bytes,
        headroom=budget.headroom,
        sampler=settings.sampler,
        seed=settings.seed,
        trials=settings.trials,
        time_limit=_time_limit(settings),
        trial_limit=settings.trial_seconds,
        jobs=len(devices),
        threads=remote.threads if remote else max(1, device.cores // len(devices)),
        device=device.to_json(),
        devices=settings.devices,
        runner=remote.name if remote else LOCAL,
        versions=library_versions(),
        until=settings.until,
        rungs=rungs,
        repeats=repeats,
        warm_start=settings.warm_start or "",
    )
    context = context_of(facts, device, settings.devices)
    _check_space(space, context)
    return Plan(
        spec=spec,
        space=space,
        context=context,
        budget=budget,
        devices=devices,
        sources=_sources(settings, space),
    )


def plan_again(spec: RunSpec, runner: Runner | None = None) -> Plan:
    """Rebuild the plan of a run from what its database holds, to continue it.

    Args:
        spec: What the run depended on.
        runner: Runs the trials from now on; None for this machine.

    Raises:
        UnknownName: If its device is not there any more.
    """
    remote = runner if isinstance(runner, Elsewhere) else None
    device = weakest(remote.devices) if remote else pick_device(settings_again(spec).device)
    space = parse_space(spec.space_source, spec.space, BUILTIN).narrowed(spec.overrides)
    return Plan(
        spec=spec,
        space=replace(space, name=spec.space),
        context=context_of(spec.facts, device, spec.devices),
        budget=Budget(total_bytes=spec.budget_bytes, headroom=spec.headroom),
        devices=remote.devices if remote else _slots(device, spec.jobs, spec.devices),
        sources={},
    )


def settings_again(spec: RunSpec) -> Settings:
    """Return what a run's runner was made from."""
    kind, index = str(spec.device["kind"]), spec.device.get("index", 0)
    return Settings(
        budget=Budget(total_bytes=spec.budget_bytes, headroom=spec.headroom),
        device=kind if kind == "cpu" else f"{kind}:{index}",
        devices=spec.devices,
        jobs=spec.jobs,
    )


def context_of(facts: WorkloadFacts, device: Device, devices: int = 1) -> Context:
    """Return what configurations of a workload are judged against on devices of one kind.

    Args:
        facts: Of the workload.
        device: One of them.
        devices: How many of them a trial may use.
    """
    return Context(
        device=device,
        model=facts.model,
        global_batch=facts.workload.global_batch,
        libraries=installed_libraries(),
        features=frozenset(facts.features),
        purpose=facts.workload.purpose,
        devices=devices,
        sequence_length=facts.workload.sequence_length,
    )


def weakest(devices: Sequence[Device]) -> Device:
    """Return what every one of several devices can do: the first, if they are alike."""
    capabilities = [device.capability for device in devices if device.capability]
    return replace(
        devices[0],
        bf16=all(device.bf16 for device in devices),
        capability=min(capabilities) if capabilities else None,
    )


def resolve_budget(budget: str | Budget, device: Device) -> Budget:
    """Read a budget and hold it against the device; `"auto"` is what the device has free.

    Raises:
        BadValue: If it is malformed, or larger than the device.
    """
    if budget == "auto":
        return Budget(total_bytes=device.free_bytes)
    result = Budget.parse(budget) if isinstance(budget, str) else budget
    if result.total_bytes > device.total_bytes:
        raise BadValue(
            f"a budget of {format_gb(result.total_bytes)} ({format_gib(result.total_bytes)}) is "
            f"more than {device.label} has: {format_gib(device.total_bytes)}",
            help="use what the device has: --budget auto",
        )
    return result


def preload_for(kind: str) -> tuple[str, ...]:
    """Return modules that trials on a kind of device start faster with, if they are installed.

    peft imports bitsandbytes where it is installed, which asks CUDA for devices: not to be forked.
    """
    return ("peft",) if kind == "cpu" and "peft" in installed_libraries() else ()


def check_jobs(settings: Settings) -> None:
    """Refuse a number of trials side by side that is none.

    Raises:
        BadValue: If `jobs` is below 1.
    """
    if settings.jobs is not None and settings.jobs < 1:
        raise BadValue(f"jobs must be at least 1, but got {settings.jobs}")


def _time_limit(settings: Settings) -> float | None:
    own = settings.model is None and settings.data is None
    if settings.time is None and own and settings.trials == DEFAULT_TRIALS:
        return FIRST_LOOK_SECONDS
    return settings.time


def _workload(settings: Settings, space: Space) -> Workload:
    training = {name: int(space.training.get(name, 0)) for name in _TRAINING}
    return Workload(
        objective=settings.objective.replace("-", "_"),
        model=settings.model,
        data=settings.data,
        text_column=settings.text_column,
        label_column=settings.label_column,
        trust_remote_code=settings.trust_remote_code,
        seed=settings.seed,
        teacher=settings.teacher,
        purpose=space.purpose,
        steps=settings.steps or training["steps"],
        global_batch=training["global_batch"],
        sequence_length=training["sequence_length"],
        eval_examples=training["eval_examples"],
    )


def _devices(settings: Settings, budget: Budget) -> tuple[Device, ...]:
    """Return the first device of each slot.

    A slot is as many CUDA devices as a trial may use, one after the other; or the CPU, as often as
    memory allows.
    """
    device = pick_device(settings.device)
    check_jobs(settings)
    if device.kind == "cuda":
        named = settings.device is not None and ":" in settings.device
        found = [device] if named and settings.devices == 1 else _groups(settings.devices)
        wanted = settings.jobs or len(found)
        return tuple(found[index % len(found)] for index in range(wanted))
    needed = budget.total_bytes * settings.devices
    room = max(1, min(device.cores // settings.devices, device.total_bytes // needed))
    return _slots(device, settings.jobs or room)


def _slots(device: Device, jobs: int, devices: int = 1) -> tuple[Device, ...]:
    if device.kind == "cuda" and jobs > 1:
        found = _groups(devices)
        return tuple(found[index % len(found)] for index in range(jobs))
    return (device,) * jobs


def _groups(devices: int) -> list[Device]:
    """Return the first of every so many CUDA devices.

    Raises:
        BadValue: If there are not so many.
    """
    found = [d for d in detect_devices() if d.kind == "cuda"]
    if devices > len(found):
        raise BadValue(
            f"a trial cannot use {devices} devices, there are {len(found)}",
            help=f"write --devices {len(found)} or less, or --runner ray for those of a cluster",
        )
    return found[: len(found) - devices + 1 : devices]


def _check_counts(settings: Settings) -> None:
    for name, value, least in (
        ("trials", settings.trials, 1),
        ("steps", settings.steps, 0),
        ("seed", settings.seed, 0),
        ("devices", settings.devices, 1),
    ):
        if value < least:
            raise BadValue(f"{name} must be at least {least}, but got {value}")


def _check_until(settings: Settings) -> None:
    if settings.until not in ("", UNTIL_STABLE):
        raise BadValue(
            f"a search cannot go on until '{settings.until}'", help=f"write --until {UNTIL_STABLE}"
        )
    if settings.until and settings.sampler != DEFAULT_SAMPLER:
        raise BadValue(
            f"sampler '{settings.sampler}' does not say what a further trial promises, so that it "
            f"cannot search until {settings.until}",
            help=f"use --sampler {DEFAULT_SAMPLER}, or --trials and --time",
        )


def _check_space(space: Space, context: Context) -> None:
    """Refuse a space of which nothing can run here, with the reason."""
    reasons = space.reasons(space.baseline(), context)
    smallest = space.smallest(context)
    if reasons and space.reasons(smallest, context):
        raise BlockedConfiguration(
            f"no configuration of space '{space.name}' can run here: {reasons[0]}",
            help=f"autotune spaces show {space.name}",
        )


def _sources(settings: Settings, space: Space) -> dict[str, str]:
    defaults = Settings(budget=settings.budget)
    sources = {"budget": "given"}
    for name in Settings.__dataclass_fields__:
        if name not in ("budget", "overrides"):
            same = getattr(settings, name) == getattr(defaults, name)
            sources[name] = "default" if same else "given"
    for name in _TRAINING:
        given = name == "steps" and settings.steps
        sources[name] = "given" if given else "space" if name in space.training else "objective"
    sources["device"] = "given" if settings.device else "device"
    if settings.time is None and _time_limit(settings) is not None:
        sources["time"] = "objective"
    sources["jobs"] = "given" if settings.jobs else "device"
    return sources | {f"set {knob}": "given" for knob in settings.overrides}
