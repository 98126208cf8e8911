"""What the loop relies on, of every runner alike; a new one joins by a line in `RUNNERS`."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from autotune.core.config import Config
from autotune.core.outcome import Completed, Stopped, outcome_from_json
from autotune.core.record import TrialRecord
from autotune.core.workload import Workload, WorkloadFacts
from autotune.runners.base import Runner
from autotune.runners.local import LocalRunner
from autotune.runners.replay import ReplayRunner
from tests.contract.test_runners import OBJECTIVE, describe, is_gone, make_spec
from tests.rays import needs_ray, ray_runner

pytestmark = pytest.mark.training

WORKLOAD = Workload(objective=OBJECTIVE, data=json.dumps({"2": "raise"}))


def make_replay(folder: Path) -> Runner:
    """A replay of two trials that the local runner ran just now."""
    runner = LocalRunner(slots=2)
    facts = runner.describe(WORKLOAD, folder / "recording")
    records = []
    for number, accumulation in enumerate((1, 2)):
        spec = make_spec(facts, folder, number=number, accumulation=accumulation)
        runner.submit(spec)
        while (event := runner.next(timeout=60)) is not None and event.kind != "outcome":
            pass
        assert event is not None
        record = TrialRecord(
            number=number, config=Config(spec.config), outcome=outcome_from_json(event.data)
        )
        records.append(record)
    runner.close()
    return ReplayRunner(facts, records, slots=2)


RUNNERS: dict[str, Callable[[Path], Runner]] = {
    "local": lambda folder: LocalRunner(slots=2),
    "ray": lambda folder: ray_runner(slots=2),
    "replay": make_replay,
}


@pytest.fixture(params=["local", pytest.param("ray", marks=needs_ray), "replay"])
def runner(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Runner]:
    if request.param == "ray":
        request.getfixturevalue("ray_nodes")
    runner = RUNNERS[request.param](tmp_path)
    yield runner
    runner.close()


@pytest.fixture
def facts(runner: Runner, tmp_path: Path) -> WorkloadFacts:
    return runner.describe(WORKLOAD, tmp_path / "cache")


def test_each_trial_ends_with_one_outcome(
    runner: Runner, facts: WorkloadFacts, tmp_path: Path
) -> None:
    for number, accumulation in enumerate((1, 2)):
        runner.submit(make_spec(facts, tmp_path, number=number, accumulation=accumulation))
    ends: Counter[int] = Counter()
    tags = {}
    while (event := runner.next(timeout=1.0 if len(ends) == 2 else 60.0)) is not None:
        if event.kind == "outcome":
            ends[event.trial] += 1
            tags[event.trial] = outcome_from_json(event.data).tag
        else:
            assert event.trial not in ends, "nothing is heard of a trial that has ended"
    assert ends == {0: 1, 1: 1}
    assert tags == {0: "completed", 1: "crashed"}


def test_a_cancelled_trial_is_stopped(runner: Runner, facts: WorkloadFacts, tmp_path: Path) -> None:
    runner.submit(make_spec(facts, tmp_path, number=3))
    runner.cancel(3, "not wanted")
    while (event := runner.next(timeout=60)) is not None and event.kind != "outcome":
        pass
    assert event is not None
    outcome = outcome_from_json(event.data)
    assert isinstance(outcome, Stopped)
    assert outcome.reason == "not wanted"


def test_a_probe_measures_without_scores(
    runner: Runner, facts: WorkloadFacts, tmp_path: Path
) -> None:
    runner.submit(make_spec(facts, tmp_path, number=0, probe=True))
    while (event := runner.next(timeout=60)) is not None and event.kind != "outcome":
        pass
    assert event is not None
    outcome = outcome_from_json(event.data)
    assert isinstance(outcome, Completed)
    assert not outcome.scores
    assert outcome.measurement.peak_bytes > 0


def test_time_goes_on_and_closing_twice_is_fine(
    runner: Runner, facts: WorkloadFacts, tmp_path: Path
) -> None:
    before = runner.now()
    runner.submit(make_spec(facts, tmp_path, number=0))
    while (event := runner.next(timeout=60)) is not None and event.kind != "outcome":
        pass
    assert runner.now() > before
    runner.close()
    runner.close()
    assert runner.next(timeout=0.1) is None


@pytest.mark.parametrize("runner", ["local", pytest.param("ray", marks=needs_ray)], indirect=True)
def test_close_leaves_no_process(runner: Runner, tmp_path: Path) -> None:
    marker = tmp_path / "grandchild"
    facts = describe(runner, tmp_path, {"1": f"grandchild {marker}"})
    runner.submit(make_spec(facts, tmp_path))
    until = time.monotonic() + 60
    while not (marker.exists() and marker.read_text()) and time.monotonic() < until:
        runner.next(timeout=0.1)
    runner.close()
    runner.close()
    assert is_gone(int(marker.read_text()))
