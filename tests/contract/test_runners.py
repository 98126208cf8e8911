"""What every runner owes the loop, and every way in which a trial can end."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from autotune.core.errors import DataError
from autotune.core.outcome import (
    Completed,
    Crashed,
    Diverged,
    Outcome,
    OutOfMemory,
    PeakKind,
    Phase,
    Stopped,
    TimedOut,
    outcome_from_json,
)
from autotune.core.workload import Workload, WorkloadFacts
from autotune.runners.base import Runner
from autotune.runners.devices import cpu_device
from autotune.runners.local import LocalRunner
from autotune.trial.spec import TrialSpec
from tests.rays import needs_ray, ray_runner

pytestmark = pytest.mark.training

OBJECTIVE = "tests.integration.troubled:Troubled"
GIB = 2**30


MAKERS: dict[str, Callable[[], Runner]] = {
    "local": lambda: LocalRunner(slots=4),
    "ray": lambda: ray_runner(slots=4),
}


@pytest.fixture(scope="module", params=["local", pytest.param("ray", marks=needs_ray)])
def runner(request: pytest.FixtureRequest) -> Iterator[Runner]:
    if request.param == "ray":
        request.getfixturevalue("ray_nodes")
    runner = MAKERS[request.param]()
    yield runner
    runner.close()


def make_spec(
    facts: WorkloadFacts,
    folder: Path,
    *,
    number: int = 0,
    accumulation: int = 1,
    limit_bytes: int = 2 * GIB,
    limit_seconds: float = 120.0,
    probe: bool = False,
) -> TrialSpec:
    return TrialSpec(
        number=number,
        config={} if accumulation == 1 else {"accumulation": accumulation},
        facts=facts,
        device=cpu_device(),
        threads=1,
        limit_bytes=limit_bytes,
        limit_seconds=limit_seconds,
        cache=str(folder / "cache"),
        log=str(folder / f"{number}.txt"),
        probe=probe,
    )


def describe(runner: Runner, folder: Path, troubles: dict[str, str]) -> WorkloadFacts:
    workload = Workload(objective=OBJECTIVE, data=json.dumps(troubles))
    return runner.describe(workload, folder / "cache")


def outcome_of(runner: Runner, spec: TrialSpec) -> Outcome:
    runner.submit(spec)
    while (event := runner.next(timeout=120)) is not None:
        if event.kind == "outcome":
            assert event.trial == spec.number
            return outcome_from_json(event.data)
    raise AssertionError("the trial ended without an outcome")


def run(runner: Runner, folder: Path, trouble: str, **limits: float) -> Outcome:
    facts = describe(runner, folder, {"1": trouble})
    return outcome_of(runner, make_spec(facts, folder, **limits))  # type: ignore[arg-type] # floats and ints by name


def test_completes_with_scores_and_peaks(runner: Runner, tmp_path: Path) -> None:
    facts = describe(runner, tmp_path, {})
    outcome = outcome_of(runner, make_spec(facts, tmp_path))
    assert isinstance(outcome, Completed)
    assert outcome.scores["error"].value > 0
    for phase in Phase:
        for kind in (PeakKind.ALLOCATED, PeakKind.RESIDENT):
            found = [p for p in outcome.measurement.peaks if (p.phase, p.kind) == (phase, kind)]
            assert len(found) == 1, (phase, kind)
    weights = 2 * (16 * 16 + 16) * 4
    assert outcome.measurement.peak(PeakKind.ALLOCATED, Phase.STEADY) > 3 * weights
    assert outcome.measurement.anatomy["weights"] == weights
    assert outcome.measurement.anatomy["optimizer"] >= 2 * weights
    assert outcome.measurement.steps == 8


def test_is_repeatable_to_the_byte(runner: Runner, tmp_path: Path) -> None:
    facts = describe(runner, tmp_path, {})
    first, second = (outcome_of(runner, make_spec(facts, tmp_path, number=n)) for n in (1, 2))
    assert isinstance(first, Completed)
    assert isinstance(second, Completed)
    assert first.measurement.peak_bytes == second.measurement.peak_bytes
    assert first.scores == second.scores


def test_a_probe_measures_without_scoring(runner: Runner, tmp_path: Path) -> None:
    facts = describe(runner, tmp_path, {})
    outcome = outcome_of(runner, make_spec(facts, tmp_path, probe=True))
    assert isinstance(outcome, Completed)
    assert not outcome.scores
    assert outcome.measurement.peak(PeakKind.ALLOCATED, Phase.STEADY) > 0


def test_out_of_memory_says_where_and_how_much(runner: Runner, tmp_path: Path) -> None:
    outcome = run(runner, tmp_path, "allocate 700", limit_bytes=300 * 2**20)
    assert isinstance(outcome, OutOfMemory)
    assert outcome.phase is Phase.FIRST
    assert 700 * 2**20 <= outcome.needed_bytes < 1200 * 2**20
    assert outcome.measurement.peak(PeakKind.ALLOCATED, Phase.LOAD) > 0


def test_within_the_limit_is_not_out_of_memory(runner: Runner, tmp_path: Path) -> None:
    outcome = run(runner, tmp_path, "allocate 200", limit_bytes=300 * 2**20)
    assert isinstance(outcome, Completed)


@pytest.mark.parametrize(
    ("trouble", "signal", "exit_code"),
    [("segfault", "SIGSEGV", None), ("killed", "SIGKILL", None), ("exit 7", None, 7)],
)
def test_a_crash_is_an_outcome(
    runner: Runner, tmp_path: Path, trouble: str, signal: str | None, exit_code: int | None
) -> None:
    outcome = run(runner, tmp_path, trouble)
    assert isinstance(outcome, Crashed)
    assert (outcome.signal, outcome.exit_code) == (signal, exit_code)
    assert "step 0" in outcome.error


def test_an_exception_is_an_outcome_with_its_traceback(runner: Runner, tmp_path: Path) -> None:
    outcome = run(runner, tmp_path, "raise")
    assert isinstance(outcome, Crashed)
    assert outcome.error == "ValueError: a bug in the user's code"
    assert "_misbehave" in outcome.traceback
    assert "a bug in the user's code" in (tmp_path / "0.txt").read_text()


def test_a_loss_that_is_not_finite_is_an_outcome(runner: Runner, tmp_path: Path) -> None:
    outcome = run(runner, tmp_path, "diverge")
    assert isinstance(outcome, Diverged)
    assert (outcome.step, outcome.loss) == (0, "nan")


@pytest.mark.parametrize("trouble", ["hang", "busy"])
def test_a_hang_meets_its_limit(runner: Runner, tmp_path: Path, trouble: str) -> None:
    outcome = run(runner, tmp_path, trouble, limit_seconds=3.0)
    assert isinstance(outcome, TimedOut)
    assert outcome.phase == "first"
    assert 3.0 <= outcome.seconds < 10.0


def test_a_cancelled_trial_is_stopped(runner: Runner, tmp_path: Path) -> None:
    facts = describe(runner, tmp_path, {"1": "hang"})
    runner.submit(make_spec(facts, tmp_path, number=5))
    assert runner.next(timeout=60) is not None
    runner.cancel(5, "not wanted")
    runner.cancel(99, "never heard of")
    outcome = None
    while outcome is None:
        event = runner.next(timeout=60)
        assert event is not None
        outcome = outcome_from_json(event.data) if event.kind == "outcome" else None
    assert isinstance(outcome, Stopped)
    assert outcome.reason == "not wanted"


def test_nothing_that_a_trial_started_outlives_it(runner: Runner, tmp_path: Path) -> None:
    marker = tmp_path / "grandchild"
    outcome = run(runner, tmp_path, f"grandchild {marker}", limit_seconds=4.0)
    assert isinstance(outcome, TimedOut)
    assert is_gone(int(marker.read_text()))


def test_trials_run_side_by_side(runner: Runner, tmp_path: Path) -> None:
    facts = describe(runner, tmp_path, {"*": "slow 0.3"})
    began = time.monotonic()
    for number in range(4):
        runner.submit(make_spec(facts, tmp_path, number=10 + number))
    ended: set[int] = set()
    while len(ended) < 4:
        event = runner.next(timeout=60)
        assert event is not None
        if event.kind == "outcome":
            ended.add(event.trial)
    assert time.monotonic() - began < 4 * 8 * 0.3, "four trials of 2.4 s took as long as in a row"


def test_what_an_objective_finds_wrong_reaches_the_caller(runner: Runner, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such data") as caught:
        runner.describe(Workload(objective=OBJECTIVE, data="missing"), tmp_path / "cache")
    assert caught.value.help == "give another --data"


def is_gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has waited for yet has."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (ProcessLookupError, FileNotFoundError):
        return True
