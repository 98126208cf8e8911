"""The frontier search: what it assumes, what it must not fall for, and where it falls back."""

from __future__ import annotations

import random
import time
from statistics import mean

import numpy as np
import pytest

from autotune.core.config import Config
from autotune.core.context import Context
from autotune.core.domains import Choice, Float
from autotune.core.knob import Knob, Numerics
from autotune.core.outcome import Crashed
from autotune.core.record import TrialRecord
from autotune.core.space import Space
from autotune.core.units import GIB
from autotune.search.candidates import nearest
from autotune.search.claims import claims
from autotune.search.deadline import Deadline
from autotune.search.features import Features
from autotune.search.frontier import INITIAL, FrontierProposer
from autotune.search.optuna import OptunaProposer
from autotune.search.proposers import Task, make_proposer
from autotune.search.rehearsals import Rehearsals
from autotune.search.scene import TOO_NEAR
from tests.benchmarks.search_problems import LOSS, SCALING, VIOLATED, Problem, peak_bytes
from tests.knobs import KNOBS, completed, out_of_memory

CONTEXT = Context()
MANY = 10_000


def proposer(problem: Problem = SCALING, *, seed: int = 0, **more) -> FrontierProposer:
    return FrontierProposer(
        problem.space,
        problem.context,
        LOSS,
        seed=seed,
        limit_bytes=problem.limit_bytes,
        **more,
    )


def search(asked, trials, problem=SCALING, *, slots=1, opening=True):
    """Run trials as the driver does, side by side and ending in order."""
    records, running = [], []
    starts = [problem.space.baseline(), problem.space.smallest(problem.context)]
    for number in range(trials):
        config = starts[number] if opening and number < 2 else asked.ask(number)
        if config is None:
            break
        asked.tell(TrialRecord(number=number, config=config))
        running.append(problem.train(number, config, 5))
        if len(running) == slots:
            records.append(running.pop(0))
            asked.tell(records[-1])
    return records + running


def rehearse(config: Config) -> int:
    return int(peak_bytes(SCALING.values(config)))


def in_space(config: Config, knobs: dict) -> Space:
    return Space(name="mine", knobs=KNOBS, domains=knobs)


@pytest.fixture(scope="module")
def whole():
    """A search with three trials side by side."""
    return search(proposer(), 30, slots=3)


def test_with_three_trials_running_every_proposal_is_legal_and_new(whole):
    configs = [record.config for record in whole]
    assert len(set(configs)) == len(configs) == 30
    assert all(SCALING.space.reasons(config, SCALING.context) == () for config in configs)


def test_trials_that_run_keep_others_away_from_their_neighbourhood():
    asked = proposer()
    for record in search(proposer(), 16):
        asked.tell(record)
    features = Features(SCALING.space)
    three = [features.codes(asked.ask(number)) for number in range(16, 19)]
    points = features.encode(np.stack(three), features.lossy)
    assert min(nearest(points[i : i + 1], np.delete(points, i, 0))[0] for i in range(3)) > TOO_NEAR


def test_a_search_with_running_trials_goes_on_as_if_it_had_not_stopped(whole):
    asked, other = proposer(), proposer()
    for record in whole[:24]:
        asked.tell(record)
    for record in random.Random(0).sample(whole[:24], 24):
        other.tell(record)
    for number in (24, 25):
        one, two = asked.ask(number), other.ask(number)
        assert one == two
        for each in (asked, other):
            each.tell(TrialRecord(number=number, config=one))


def test_noise_does_not_make_it_measure_the_same_spot_again():
    features = Features(SCALING.space)
    records = search(proposer(VIOLATED), 40, VIOLATED)[INITIAL:]
    lossy = features.encode(np.stack([features.codes(r.config) for r in records]), features.lossy)
    verified = 0
    for index in range(1, len(lossy)):
        verified += int(nearest(lossy[index : index + 1], lossy[:index])[0] < TOO_NEAR)
    assert verified <= 1  # the early verification of a claim


def test_conditional_knobs_stay_neutral_where_they_are_switched_off(whole):
    for record in whole:
        assert record.config.get("lora.rank", 0) or "lora.targets" not in record.config
        assert "offload" in record.config or "offload.share" not in record.config
    assert any("offload" in record.config for record in whole)


def test_with_exact_rehearsals_nothing_is_proposed_over_the_budget():
    records = search(proposer(rehearsals=Rehearsals(rehearse)), 25)
    assert all(record.feasible for record in records[2:])


def test_memory_is_learned_from_trials_that_ran_out_of_it():
    def wasted(sampler):
        task = Task(
            space=SCALING.space,
            context=SCALING.context,
            metric=LOSS,
            limit_bytes=SCALING.limit_bytes,
        )
        records = search(make_proposer(sampler, task), 25, opening=False)
        return sum(not record.feasible for record in records)

    assert wasted("frontier") <= 3 < wasted("random")


def test_a_trial_out_of_memory_says_nothing_about_accuracy():
    """A crash tells as much about accuracy as out of memory: the loss is left alone."""
    configs = [Config({"share": share, "lora.rank": 4}) for share in (0.0, 0.25, 0.5)]
    space = in_space(configs[0], {k.name: k.domain for k in KNOBS})
    fine = [completed(n, c, loss=1.0 + n, peak=GIB, limit=2 * GIB) for n, c in enumerate(configs)]
    features = Features(space)
    from autotune.search.findings import finding_of

    told = finding_of(out_of_memory(3, Config({"chunks": 2})), features, LOSS, GIB)
    assert not told.scored
    assert told.over >= 2.0
    assert all(finding_of(r, features, LOSS, GIB).scored for r in fine)
    crashed = TrialRecord(number=4, config=Config({"chunks": 3}), outcome=Crashed())
    assert not finding_of(crashed, features, LOSS, GIB).scored


@pytest.mark.parametrize("seed", [0, 1])
def test_the_leanest_setting_of_exact_knobs_is_trained(seed):
    asked = proposer(rehearsals=Rehearsals(rehearse), seed=seed)
    for record in search(asked, 20)[INITIAL + 1 :]:
        peaks = [SCALING.true_point(c)[1] for c in SCALING.expansions(record.config)]
        assert SCALING.true_point(record.config)[1] <= 1.05 * min(peaks)


def test_exact_knobs_that_change_accuracy_are_noticed_and_searched_for_accuracy():
    asked = proposer(VIOLATED)
    records = search(asked, INITIAL + 2, VIOLATED)
    assert asked.note == ""
    sibling = next(c for c in VIOLATED.expansions(records[3].config) if c != records[3].config)
    for number, loss in ((20, 9.0), (21, 1.0)):
        config = [c for c in VIOLATED.expansions(sibling) if c != records[3].config][number - 20]
        asked.tell(completed(number, config, loss=loss, limit=VIOLATED.limit_bytes))
    assert asked.ask(22) is not None
    assert "other accuracies" in asked.note


def _knob(index: int, numerics: Numerics = Numerics.LOSSY) -> Knob:
    return Knob(
        name=f"k{index}", help="", domain=Choice((0, 1, 2)), neutral=0, leanest=2,
        numerics=numerics, transforms=(),
    )  # fmt: skip


def _task(count: int, numerics: Numerics = Numerics.LOSSY) -> Task:
    knobs = tuple(_knob(index, numerics) for index in range(count))
    space = Space(name="many", knobs=knobs, domains={k.name: k.domain for k in knobs}, rules=())
    return Task(space=space, context=CONTEXT, metric=LOSS, limit_bytes=4 * GIB)


def test_too_many_lossy_knobs_are_left_to_tpe_with_a_note():
    asked = make_proposer("frontier", _task(41))
    assert isinstance(asked, OptunaProposer)
    assert "41 knobs" in asked.note
    assert isinstance(make_proposer("frontier", _task(40)), FrontierProposer)


def test_without_lossy_knobs_it_looks_for_the_least_memory():
    task = _task(5, Numerics.EXACT)
    asked = make_proposer("frontier", task)
    best = []
    for number in range(30):
        config = asked.ask(number)
        peak = GIB * (3.0 - 0.2 * sum(config.complete(task.space.knobs).values()))
        asked.tell(completed(number, config, loss=1.0, peak=peak, limit=task.limit_bytes))
        best.append(peak)
    assert min(best) == pytest.approx(GIB)


def test_little_remains_where_everything_was_found():
    domains = {
        "share": KNOBS[0].domain,
        "weight_bits": Choice((16, 8, 4)),
        "chunks": Choice((1, 2)),
    }
    space = Space(name="small", knobs=KNOBS, domains=domains, rules=())
    asked = FrontierProposer(space, CONTEXT, LOSS, limit_bytes=8 * GIB)
    shares = []
    for number in range(space.count(CONTEXT)):
        config = asked.ask(number)
        at = config.complete(KNOBS)
        peak = GIB * (1 + at["weight_bits"] / 8 * (1 - at["share"]))
        loss = 1 + at["share"] + 1 / at["weight_bits"]
        asked.tell(completed(number, config, loss=loss, peak=peak, limit=8 * GIB))
        shares.append(asked.remaining())
    assert shares[0] is None
    assert 0.0 <= shares[-1] < 0.01
    assert asked.ask(99) is None


def test_claims_are_trained_accuracies_at_leaner_settings(whole):
    found = claims(whole, SCALING.space, SCALING.context, LOSS, limit_bytes=SCALING.limit_bytes)
    by_number = {record.number: record for record in whole}
    tried = {record.config for record in whole}
    lossy = {k.name for k in SCALING.space.knobs if k.numerics is not Numerics.EXACT}
    for claim in found:
        sibling = by_number[claim.trained].config
        assert {n: v for n, v in claim.config.items() if n in lossy} == {
            n: v for n, v in sibling.items() if n in lossy
        }
        assert claim.config not in tried
        assert claim.peak_bytes <= SCALING.limit_bytes
        assert not any(
            r.point(LOSS) and r.point(LOSS)[0] <= claim.loss and r.point(LOSS)[1] < claim.peak_bytes
            for r in whole
        )


def test_a_claim_that_would_join_the_front_is_verified_before_the_end():
    """The best accuracy was trained at a wasteful setting: a lean one is tried at the end."""
    asked = proposer(deadline=Deadline(20))
    records = search(proposer(deadline=Deadline(20)), 17)
    best = min((r for r in records if r.feasible), key=lambda r: r.point(LOSS)[0])
    for record in records:
        asked.tell(record)
    wasteful = {"checkpointing": "none", "micro_batch": 2, "width": 512, "depth": 8}
    known = Config({**best.config, **wasteful, "schedule": "constant"}, SCALING.space.knobs)
    record = SCALING.train(17, known, 0)
    assert record.feasible
    asked.tell(
        completed(17, known, loss=1.9, peak=record.point(LOSS)[1], limit=SCALING.limit_bytes)
    )
    last = asked.ask(18)
    lossy = {k.name for k in SCALING.space.knobs if k.numerics is not Numerics.EXACT}
    assert {n: v for n, v in last.items() if n in lossy} == {
        n: v for n, v in known.items() if n in lossy
    }
    assert SCALING.true_point(last)[1] < record.point(LOSS)[1] / GIB


def test_time_is_a_third_objective_on_demand():
    records = search(proposer(timed=True), 24)
    checkpointing = {r.config.get("checkpointing", "none") for r in records[INITIAL:]}
    assert len(checkpointing) > 1
    fastest = min(r.outcome.measurement.step_seconds for r in records if r.feasible)
    two = search(proposer(), 24)
    assert fastest < min(r.outcome.measurement.step_seconds for r in two if r.feasible)


def test_asking_costs_no_more_after_ten_thousand_trials():
    """The seconds themselves are recorded by `tests/benchmarks/storage.py`."""
    rng = np.random.default_rng(0)
    features = Features(SCALING.space)
    codes = features.draw(rng, MANY)

    def seconds(count):
        asked = proposer()
        for number, row in enumerate(codes[:count]):
            config = features.config(row)
            asked.tell(completed(number, config, loss=float(row[0] / row[1]), limit=2**40))
        asked.ask(count)
        took = []
        for number in range(count + 1, count + 4):
            began = time.process_time()
            asked.ask(number)
            took.append(time.process_time() - began)
        return min(took)

    assert seconds(MANY) < 2 * seconds(500), "twenty times the trials, and twice the time is noise"


def test_it_finds_a_better_front_than_random_draws_with_half_the_trials():
    def best(records):
        return min(SCALING.true_point(r.config)[0] for r in records if r.feasible)

    task = Task(
        space=SCALING.space, context=SCALING.context, metric=LOSS, limit_bytes=SCALING.limit_bytes
    )
    ours = mean(best(search(proposer(seed=seed), 20)) for seed in range(2))
    theirs = mean(best(search(make_proposer("random", task), 40)) for _ in range(2))
    assert ours < theirs


def test_ranges_of_reals_are_drawn_inside_and_on_their_scale():
    features = Features(SCALING.space)
    rate = next(c for c in features.columns if c.knob.name == "learning_rate")
    assert isinstance(rate.domain, Float)
    rng = np.random.default_rng(0)
    drawn = rate.draw(rng, 4000)
    assert ((drawn >= rate.domain.low) & (drawn <= rate.domain.high)).all()
    middle = float(np.sqrt(rate.domain.low * rate.domain.high))
    assert np.median(drawn) == pytest.approx(middle, rel=0.1)
    np.testing.assert_allclose(rate.at(rate.position(drawn)), drawn)
