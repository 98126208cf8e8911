"""Ranks of one trial on several nodes of a real Ray cluster: as on one node, or ended together."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from autotune.core.outcome import Completed, Crashed, outcome_from_json
from autotune.core.workload import Workload, WorkloadFacts
from autotune.runners.local import LocalRunner
from autotune.runners.ray import RayRunner
from autotune.runners.ray_cluster import Cluster
from autotune.trial.spec import Event, TrialSpec
from tests.contract.test_runners import describe, make_spec
from tests.integration.test_ray import Once, hear, is_ours, outcomes
from tests.rays import GIB, HEAD_MEMORY, Nodes, needs_ray

pytestmark = [pytest.mark.training, needs_ray]

SLOT = HEAD_MEMORY // 2 + GIB
"""The head has room for one rank, and no node for two."""


@pytest.fixture(scope="module")
def others(ray_nodes: Nodes) -> Iterator[list[Any]]:
    """Two nodes beside the head, with one slot each."""
    others = [ray_nodes.add(cpus=1, memory=SLOT) for _ in range(2)]
    yield others
    for node in others:
        ray_nodes.kill(node)


@pytest.fixture(scope="module")
def runner(others: list[Any]) -> Iterator[RayRunner]:
    cluster = Cluster(kind="cpu")
    yield RayRunner(cluster, limit_bytes=GIB, jobs=2)
    cluster.close()


def of_two_ranks(facts: WorkloadFacts, folder: Path, data: str = "ddp") -> TrialSpec:
    spec = make_spec(facts, folder, limit_bytes=SLOT)
    return replace(spec, config={"layout.ranks": 2, "layout.data": data}, threads=2)


def losses(events: list[Event]) -> list[float]:
    return [event.data["loss"] for event in events if event.kind == "step"]


def test_two_nodes_train_as_one_does(runner: RayRunner, tmp_path: Path) -> None:
    workload = Workload(
        objective="causal_lm", steps=6, global_batch=8, sequence_length=32, eval_examples=8
    )
    facts = runner.describe(workload, tmp_path / "cache")
    spec = of_two_ranks(facts, tmp_path, "zero3")
    runner.submit(spec)
    events = hear(runner, 1)
    end = outcomes(events)[0]
    assert isinstance(end, Completed), end
    (node,) = [event for event in events if event.kind == "node"]
    assert len(node.data["node"].split(", ")) == 2
    assert {peak.rank for peak in end.measurement.peaks} == {0, 1}
    local = LocalRunner()
    local.submit(replace(spec, log=str(tmp_path / "one.txt")))
    said = []
    while not said or said[-1].kind != "outcome":
        event = local.next(timeout=60)
        assert event is not None
        said.append(event)
    local.close()
    one = outcome_from_json(said[-1].data)
    assert isinstance(one, Completed), one
    assert losses(events)[-1] == pytest.approx(losses(said)[-1], rel=2e-5)
    assert one.scores["perplexity"].value == pytest.approx(end.scores["perplexity"].value, rel=1e-4)


@pytest.mark.parametrize("whole", [False, True], ids=["a rank", "all of its ranks"])
def test_a_part_that_is_killed_ends_the_other(
    runner: RayRunner, tmp_path: Path, whole: bool
) -> None:
    troubles = {"1": "slow 0.2"} if whole else {"1": "on 1 6 killed"}
    facts = describe(runner, tmp_path, troubles)
    began: list[float] = []

    def kill() -> None:
        began.append(time.monotonic())
        (second,) = [pid for log, pid in trials() if log.endswith(".rank1")]
        psutil.Process(second).kill()

    def watch(event: Event) -> None:
        if event.kind == "step":
            began.append(time.monotonic())

    runner.submit(of_two_ranks(facts, tmp_path))
    events = hear(runner, 1, Once(0, "step", kill) if whole else watch)
    end = outcomes(events)[0]
    assert isinstance(end, Crashed), end
    assert (end.signal, end.rank) == ("SIGKILL", 1)
    assert time.monotonic() - began[-1] < 10.0
    assert not trials(), "a part of the trial outlived it"


def test_a_trial_is_repeated_when_one_of_its_nodes_is_lost(
    ray_nodes: Nodes, others: list[Any], runner: RayRunner, tmp_path: Path
) -> None:
    facts = describe(runner, tmp_path, {"1": "slow 0.2"})
    kept = [place for place in runner._cluster.places if place.device.total_bytes == SLOT]
    spec = of_two_ranks(facts, tmp_path)
    kept[0].taken[-1] = SLOT  # so that the other one is used, which is the last that came
    doomed = next(n for n in others if n.node_id == kept[1].post.node.id)

    def kill() -> None:
        kept[0].taken.clear()
        others.remove(doomed)
        ray_nodes.kill(doomed)

    runner.submit(spec)
    events = hear(runner, 1, Once(0, "step", kill))
    assert isinstance(outcomes(events)[0], Completed)
    assert [event.kind for event in events].count("repeated") == 1
    assert [event.kind for event in events].count("node") == 2


def trials() -> list[tuple[str, int]]:
    """Log and number of every process that leads a part of a trial."""
    found = []
    for process in psutil.process_iter():
        try:
            if is_ours(process) and os.getpgid(process.pid) == process.pid:
                log = str(Path(f"/proc/{process.pid}/fd/1").readlink())
                if ".txt" in log:
                    found.append((log, process.pid))
        except (psutil.Error, OSError):
            continue
    return found
