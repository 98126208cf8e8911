"""Searches on a real Ray cluster: what local ones do, through faults, and with room counted."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from autotune.core.errors import DataError
from autotune.core.outcome import Completed, Crashed, Outcome, outcome_from_json
from autotune.core.workload import WorkloadFacts
from autotune.runners.local import LocalRunner
from autotune.runners.ray import RayRunner
from autotune.runners.ray_attempt import Attempt, Branch
from autotune.runners.ray_cluster import Cluster
from autotune.runners.ray_room import Place
from autotune.storage.run import Run
from autotune.storage.store import Store
from autotune.trial.spec import Event
from autotune.tuner import resume, tune
from tests.contract.test_runners import describe, is_gone, make_spec
from tests.integration.test_search import (
    ROOT,
    SPACE,
    Unscreened,
    numbers,
    settings,
    wait_for_trial,
)
from tests.rays import ENVIRONMENT, GIB, HEAD_MEMORY, Nodes, needs_ray

pytestmark = [pytest.mark.training, needs_ray]

TROUBLES = {"2": "segfault", "8": "diverge", "16": "allocate 900", "32": "raise"}


class Kept(RayRunner):
    """A runner for many tests: closing it ends trials, but leaves agents, which are slow to start.

    Nobody rehearses its trials before, and all that is said to it is said twice.
    """

    trains = False
    watch: Callable[[Event, Place], None] | None = None

    def _take(self, attempt: Attempt, branch: Branch, order: int, event: Event) -> None:
        super()._take(attempt, branch, order, event)
        super()._take(attempt, branch, order, event)
        if self.watch is not None:
            self.watch(event, attempt.room.places[0])

    def set_up(self, *, jobs: int | None = 2, repeats: int = 2) -> None:
        self._jobs, self._repeats, self.watch = jobs, repeats, None
        self._lost.clear()
        self._seen.clear()

    def close(self) -> None:
        self._waiting.clear()
        for attempt in list(self._running.values()):
            self.cancel(attempt.spec.number, "closed")
        while self._running:
            self.next(timeout=30)


@pytest.fixture(scope="module")
def kept(ray_nodes: Nodes) -> Iterator[Kept]:
    runner = Kept(Cluster(kind="cpu"), limit_bytes=GIB)
    yield runner
    runner._cluster.close()


@pytest.fixture
def runner(kept: Kept) -> Iterator[Kept]:
    kept.set_up()
    yield kept
    kept.close()


@pytest.fixture
def facts(runner: RayRunner, tmp_path: Path) -> WorkloadFacts:
    return describe(runner, tmp_path, {"1": "slow 0.2"})


@pytest.fixture
def space(tmp_path: Path) -> str:
    path = tmp_path / "troubled.yaml"
    path.write_text(SPACE)
    return str(path)


def agents() -> list[psutil.Process]:
    """Processes of agents, which lead those of their trials."""
    found = []
    for process in psutil.process_iter(["name", "cmdline"]):
        title = " ".join(process.info["cmdline"] or [])
        if title.startswith("ray::Agent") and is_ours(process):
            found.append(process)
    return found


def is_ours(process: psutil.Process) -> bool:
    """Whether a process descends from this one, as do all of the simulated nodes."""
    try:
        return any(parent.pid == os.getpid() for parent in process.parents())
    except psutil.NoSuchProcess:
        return False


def hear(
    runner: RayRunner, trials: int, meanwhile: Callable[[Event], None] = lambda _: None
) -> list[Event]:
    """Everything that is said until so many trials have ended, and for a moment longer."""
    heard: list[Event] = []
    while sum(event.kind == "outcome" for event in heard) < trials:
        event = runner.next(timeout=90)
        assert event is not None, [event.kind for event in heard]
        heard.append(event)
        meanwhile(event)
    assert runner.next(timeout=1.0) is None
    return heard


def take_in(runner: RayRunner, nodes: int) -> None:
    """Wait until so many nodes have an agent."""
    until = time.monotonic() + 60
    while len(runner._cluster.posts) != nodes:
        assert time.monotonic() < until, "the node that came was not taken in"
        runner._cluster.refresh()
        time.sleep(0.1)


def outcomes(events: list[Event]) -> dict[int, Outcome]:
    """How each trial ended, and that it ended once."""
    ends = [event for event in events if event.kind == "outcome"]
    assert set(Counter(event.trial for event in ends).values()) == {1}
    return {event.trial: outcome_from_json(event.data) for event in ends}


def nodes_of(events: list[Event], trial: int) -> list[str]:
    return [str(e.data["node"]) for e in events if (e.trial, e.kind) == (trial, "node")]


class Once:
    """Does something at the first event of a kind that a trial reports."""

    def __init__(self, trial: int, kind: str, act: Callable[[], None]) -> None:
        self.trial, self.kind, self.act = trial, kind, act
        self.done = False

    def __call__(self, event: Event) -> None:
        if not self.done and (event.trial, event.kind) == (self.trial, self.kind):
            self.done = True
            self.act()


def test_a_search_ends_as_it_does_on_one_machine(runner: Kept, space: str, tmp_path: Path) -> None:
    more = {"trials": 6, "name": "run", "seed": 3, "overrides": {"learning_rate": "1.0"}}
    here = tune(**settings(space, tmp_path / "local", TROUBLES, **more), runner=Unscreened())
    runner.set_up(jobs=1)
    there = tune(**settings(space, tmp_path / "ray", TROUBLES, **more), runner=runner)
    assert numbers(there) == numbers(here)
    assert len(numbers(there)) == 2
    ends = [(r.number, r.config, r.outcome.tag) for r in here.records if r.outcome]
    assert [(r.number, r.config, r.outcome.tag) for r in there.records if r.outcome] == ends
    assert {tag for _, _, tag in ends} == {"completed", "crashed", "diverged", "out-of-memory"}
    assert (here.spec.runner, there.spec.runner) == ("local", "ray")


def test_what_an_agent_ran_is_repeated_when_it_is_killed(
    runner: Kept, facts: WorkloadFacts, tmp_path: Path
) -> None:
    for number in range(2):
        runner.submit(make_spec(facts, tmp_path, number=number))
    left: list[int] = []

    def kill() -> None:
        (agent,) = agents()
        left.extend(child.pid for child in agent.children(recursive=True))
        agent.kill()

    events = hear(runner, 2, Once(1, "step", kill))
    assert {number: type(end) for number, end in outcomes(events).items()} == {
        0: Completed,
        1: Completed,
    }
    repeats = [event for event in events if event.kind == "repeated"]
    assert {event.trial for event in repeats} == {0, 1}
    assert all("was lost" in event.data["note"] for event in repeats)
    assert all(is_gone(pid) for pid in left), "a trial outlived its agent"


def test_a_trial_is_not_repeated_for_ever(runner: Kept, tmp_path: Path) -> None:
    runner.set_up(repeats=1)
    facts = describe(runner, tmp_path, {"1": "hang"})
    runner.submit(make_spec(facts, tmp_path, number=7))

    def kill(event: Event) -> None:
        if event.data.get("phase") == "first":
            for agent in agents():
                agent.kill()

    events = hear(runner, 1, kill)
    end = outcomes(events)[7]
    assert isinstance(end, Crashed)
    assert "repeated 1 times already" in end.error
    assert [event.kind for event in events].count("repeated") == 1


def test_a_node_that_dies_loses_nothing(
    ray_nodes: Nodes, runner: Kept, space: str, tmp_path: Path
) -> None:
    """A whole search through the death of a node in the middle of a trial."""
    doomed = ray_nodes.add(cpus=8, memory=HEAD_MEMORY + GIB)
    killed: list[int] = []

    def kill(event: Event, place: Place) -> None:
        there = place.device.total_bytes > HEAD_MEMORY
        if event.kind == "step" and there and not killed:
            killed.append(event.trial)
            ray_nodes.kill(doomed)

    take_in(runner, 2)
    runner.set_up(jobs=3)
    runner.watch = kill
    where = settings(space, tmp_path / "r", {"*": "slow 0.1"}, name="run", trials=8)
    run = tune(**where, overrides={"accumulation": "1,2,4"}, runner=runner)
    with Store.open(run.folder, create=False) as store:
        events = store.events("run")
    assert len(killed) == 1, [(e.trial, e.kind, e.data) for e in events if e.kind != "phase"]
    assert [r.number for r in run.records] == list(range(8))
    assert all(isinstance(r.outcome, Completed) for r in run.records)
    assert len({r.config for r in run.records}) == 8
    lost = [event.trial for event in events if event.kind == "repeated"]
    assert lost  # what the node ran, be it without the trial that was heard of last
    starts = Counter(event.trial for event in events if event.kind == "node")
    assert starts == {number: 1 + lost.count(number) for number in range(8)}


def test_a_driver_that_is_killed_is_resumed_to_the_same_end(
    ray_nodes: Nodes, runner: Kept, space: str, tmp_path: Path
) -> None:
    runner._cluster.release()
    more = {"trials": 5, "name": "run", "seed": 3, "overrides": {"accumulation": "1,2"}}
    whole = tune(
        **settings(space, tmp_path / "whole", {"*": "slow 0.1"}, **more),
        runner=LocalRunner(),
    )
    arguments = settings(space, str(tmp_path / "killed"), {"*": "slow 0.1"}, **more)
    arguments |= {"runner": "ray", "address": ray_nodes.address}
    program = f"from autotune.tuner import tune\ntune(**{arguments!r})"
    driver = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        text=True,
        env={**os.environ, **ENVIRONMENT},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        wait_for_trial(tmp_path / "killed", "run", 2)
    finally:
        driver.kill()
        driver.communicate()
    until = time.monotonic() + 30
    while agents() and time.monotonic() < until:
        time.sleep(0.2)
    assert not agents(), "an agent outlived its driver"
    left = Run.open("run", results=tmp_path / "killed")
    assert [r.number for r in left.records if r.outcome is None] == [2]
    again = resume("run", results=tmp_path / "killed")
    assert again.spec.runner == "ray"
    assert numbers(again) == numbers(whole)


def test_memory_is_given_out_by_device(
    ray_nodes: Nodes, runner: Kept, facts: WorkloadFacts, tmp_path: Path
) -> None:
    half = make_spec(facts, tmp_path, limit_bytes=HEAD_MEMORY // 2)
    large = replace(half, limit_bytes=HEAD_MEMORY // 2 + 1)
    for number, spec in enumerate((large, half, half)):
        runner.submit(replace(spec, number=number, log=f"{spec.log}{number}"))
    events = hear(runner, 3)
    assert all(isinstance(end, Completed) for end in outcomes(events).values())
    began = {e.trial: index for index, e in enumerate(events) if e.kind == "node"}
    ended = {e.trial: index for index, e in enumerate(events) if e.kind == "outcome"}
    assert began[1] > ended[0], "two trials had more than the device together"
    assert max(began[1], began[2]) < min(ended[1], ended[2]), "half and half did not share it"


def test_what_fits_no_node_ends_with_a_sentence(
    runner: Kept, facts: WorkloadFacts, tmp_path: Path
) -> None:
    runner.submit(make_spec(facts, tmp_path, number=4, limit_bytes=HEAD_MEMORY + 1))
    end = outcomes(hear(runner, 1))[4]
    assert isinstance(end, Crashed)
    assert "fits no node of the cluster, of which the largest device has 12.00 GiB" in end.error


def test_a_trial_goes_where_it_fits(
    ray_nodes: Nodes, runner: Kept, facts: WorkloadFacts, tmp_path: Path
) -> None:
    runner.set_up(jobs=None)
    before = runner.slots
    larger = ray_nodes.add(cpus=1, memory=HEAD_MEMORY + GIB)
    try:
        take_in(runner, 2)
        assert runner.slots == before + 1
        runner.submit(make_spec(facts, tmp_path, number=2, limit_bytes=HEAD_MEMORY + 1))
        assert isinstance(outcomes(hear(runner, 1))[2], Completed)
    finally:
        ray_nodes.kill(larger)


def test_data_must_be_on_every_node(
    runner: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    data = tmp_path / "data.json"
    data.write_text("{}")

    post = runner._cluster.posts[0]
    elsewhere = SimpleNamespace(missing=SimpleNamespace(remote=ray.put))
    lacking = replace(post, actor=elsewhere, node=replace(post.node, host="10.0.0.7"))
    monkeypatch.setattr(runner._cluster, "posts", [post, lacking])
    with pytest.raises(DataError, match=r"data\.json' is not on node 10\.0\.0\.7"):
        describe_data(runner, str(data), tmp_path)
    monkeypatch.undo()


def describe_data(runner: RayRunner, data: str, folder: Path) -> WorkloadFacts:
    from autotune.core.workload import Workload

    objective = "tests.integration.test_ray:FromFile"
    return runner.describe(Workload(objective=objective, data=data), folder / "cache")


def FromFile(workload: Any, cache: Path) -> Any:
    """The troubled objective, with its troubles in a file."""
    from tests.integration.troubled import Troubled

    return Troubled(replace(workload, data=Path(workload.data).read_text()), cache)


def test_logs_come_to_the_driver_from_nodes_that_do_not_share_its_folder(
    runner: Kept, facts: WorkloadFacts, tmp_path: Path
) -> None:
    spec = replace(make_spec(facts, tmp_path, accumulation=2), log=str(tmp_path / "far" / "log"))
    runner._token = str(tmp_path / "not there")
    moved: list[str] = []

    def move(event: Event) -> None:
        if event.kind == "outcome":
            moved.append(Path(spec.log).read_text())

    runner.submit(spec)
    events = hear(runner, 1, move)
    assert {event.kind for event in events} >= {"node", "phase", "outcome"}
    assert len(moved) == 1
