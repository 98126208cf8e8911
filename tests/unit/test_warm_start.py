"""What an earlier run spares a search, and what is never taken over from it."""

from __future__ import annotations

from dataclasses import replace
from statistics import mean

import pytest

from autotune.core.errors import UsageError
from autotune.core.observer import Silent
from autotune.core.workload import RunSpec
from autotune.runners.replay import ReplayRunner
from autotune.search.frontier import FrontierProposer
from autotune.search.warm_start import Earlier, earlier_run
from autotune.tuner import resume, tune
from tests.benchmarks.search_problems import LOSS, SCALING, true_loss
from tests.benchmarks.search_runs import run_search, share, trained_points
from tests.benchmarks.simulated import facts_of
from tests.cli.recorded import facts, records
from tests.studies import make_spec

SHIFTED = replace(SCALING, loss=lambda at: 1.1 * true_loss(at) + 0.3)
"""The same trainings with less data, say: all losses are higher, and not all by the same."""

SEEDS = (0, 1)
EARLIER, COLD, WARM = 18, 16, 7


def frontier(seed: int, earlier: Earlier | None = None) -> FrontierProposer:
    return FrontierProposer(
        SCALING.space,
        SCALING.context,
        LOSS,
        seed=seed,
        limit_bytes=SCALING.limit_bytes,
        earlier=earlier,
    )


@pytest.fixture(scope="module")
def before():
    return {
        seed: run_search(SHIFTED, frontier(50 + seed), EARLIER, seed=seed + 9) for seed in SEEDS
    }


def reached(seed: int, trials: int, earlier: Earlier | None = None) -> float:
    found = run_search(SCALING, frontier(seed, earlier), trials, seed=seed)
    return share(SCALING, trained_points(SCALING, [record.config for record in found.records]))


def test_a_warm_search_needs_less_than_half_of_the_trainings(before):
    cold = mean(reached(seed, COLD) for seed in SEEDS)
    warm = mean(
        reached(seed, WARM, Earlier(name="x", records=tuple(before[seed].records), memory=True))
        for seed in SEEDS
    )
    assert warm > cold


def test_memory_of_another_device_is_measured_anew(before):
    told = Earlier(name="x", records=tuple(before[0].records))
    asked = frontier(0, told)
    asked.tell(SCALING.train(0, SCALING.space.baseline(), 0))
    asked.ask(1)
    assert asked._taken_over() == ((), ())
    assert asked._most_initial > frontier(0, replace(told, memory=True))._most_initial


def spec(name: str, **more) -> RunSpec:
    return replace(make_spec(name), facts=facts_of(SCALING), **more)


def earlier(before, old: RunSpec, new: RunSpec, **more) -> Earlier:
    found = {"space": SCALING.space, **more}
    return earlier_run(old, before[0].records, new=new, **found)


def test_memory_and_time_count_only_as_far_as_they_were_measured_alike(before):
    new = spec("new")
    same = earlier(before, spec("old", seed=3), new)
    assert (same.memory, same.time) == (True, True)
    assert "memory and time as measured there" in same.sentence
    shorter = replace(new.facts, workload=replace(new.facts.workload, steps=7))
    slower = earlier(before, spec("old", threads=9), new)
    short = earlier(before, replace(spec("old"), facts=shorter), new)
    for found in (slower, short):
        assert (found.memory, found.time) == (True, False)
        assert "time is measured anew" in found.sentence
    wider = replace(new.facts, workload=replace(new.facts.workload, global_batch=99))
    other = earlier(before, spec("old", device={**new.device, "name": "another card"}), new)
    bigger = earlier(before, replace(spec("old"), facts=wider), new)
    for found, why in ((other, "another device, another card"), (bigger, "another workload")):
        assert (found.memory, found.time) == (False, False)
        assert why in found.sentence


def test_a_run_that_teaches_nothing_is_refused(before):
    new = spec("new")
    workload = replace(new.facts.workload, objective="causal_lm")
    with pytest.raises(UsageError, match="causal_lm"):
        earlier(before, replace(spec("old"), facts=replace(new.facts, workload=workload)), new)
    domains = {"width": SCALING.space.domains["width"]}
    narrow = replace(SCALING.space, domains=domains)
    with pytest.raises(UsageError, match="no completed trial"):
        earlier_run(spec("old"), before[0].records[2:5], new=new, space=narrow)


class Listener(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def again(tmp_path, **more):
    listener = Listener()
    run = tune(
        budget="16GB",
        device="cpu",
        results=tmp_path,
        runner=ReplayRunner(facts(), records()),
        observers=(listener,),
        **more,
    )
    return run, listener.notes


def test_a_run_remembers_what_it_learned_from_and_when_it_was_to_end(tmp_path):
    again(tmp_path, name="first", trials=2)
    run, notes = again(tmp_path, name="second", trials=2, warm_start="latest", until="stable")
    assert run.spec.warm_start == "first"
    assert run.spec.until == "stable"
    assert any("trials of first" in note for note in notes)
    listener = Listener()
    more = resume(
        "second",
        results=tmp_path,
        runner=ReplayRunner(facts(), records()),
        observers=(listener,),
    )
    assert (more.spec.until, more.spec.warm_start) == ("stable", "first")
    assert listener.notes[0] == notes[0]
    longer = resume("second", extra=1, results=tmp_path, runner=ReplayRunner(facts(), records()))
    assert longer.spec.until == ""
    assert len(longer.records) == len(run.records) + 1


def test_a_start_that_cannot_be_warm_leaves_nothing_behind(tmp_path):
    for more, said in (
        ({"warm_start": "never"}, "never"),
        ({"warm_start": "never", "sampler": "tpe"}, "cannot learn"),
    ):
        with pytest.raises(UsageError, match=said):
            again(tmp_path, name="cold", **more)
        assert not (tmp_path / "cold").exists()


def test_specs_of_earlier_versions_open_and_keep_their_hash():
    old = make_spec().to_json()
    assert not {"until", "warm_start"} & set(old)
    assert RunSpec.from_json(old).until == ""
    assert RunSpec.from_json(old).fingerprint == make_spec().fingerprint
    new = replace(make_spec(), until="stable")
    assert RunSpec.from_json(new.to_json()) == new
