"""Where time is short, fast settings are trained, lean ones claimed, and those verified."""

from __future__ import annotations

from dataclasses import replace

from autotune.core.knob import Numerics
from autotune.core.pareto import hypervolume
from autotune.core.record import TrialRecord
from autotune.core.units import GIB
from autotune.search.deadline import Deadline
from autotune.search.frontier import FrontierProposer
from tests.benchmarks.search_problems import LOSS, SCALING, step_seconds
from tests.benchmarks.search_runs import expanded_points, share, trained_points

AMPLE = replace(SCALING, limit_bytes=24 * GIB)
LIMIT = 200 * 3600.0
LOSSY = {k.name for k in SCALING.space.knobs if k.numerics is not Numerics.EXACT}


def search(deadline: Deadline, seed: int = 0) -> list[TrialRecord]:
    """Search for as long as the limit is, one trial after the other."""
    asked = FrontierProposer(
        AMPLE.space,
        AMPLE.context,
        LOSS,
        seed=seed,
        limit_bytes=AMPLE.limit_bytes,
        deadline=deadline,
    )
    records, spent = [], 0.0
    opening = [AMPLE.space.baseline(), AMPLE.space.smallest(AMPLE.context)]
    while spent < LIMIT:
        number = len(records)
        config = opening[number] if number < 2 else asked.ask(number)
        asked.tell(TrialRecord(number=number, config=config))
        records.append(AMPLE.train(number, config, seed))
        asked.tell(records[-1])
        spent += records[-1].outcome.seconds
    assert ("time is limited" in asked.note) == deadline.timed
    return records


def lossy(record: TrialRecord) -> frozenset:
    return frozenset((n, v) for n, v in record.config.items() if n in LOSSY)


def test_a_time_limit_buys_more_trainings_and_a_better_front():
    hurried, lean = search(Deadline(0, LIMIT)), search(Deadline())
    assert len(hurried) >= 2 * len(lean)
    for points_of in (trained_points, expanded_points):
        ours, theirs = (
            share(AMPLE, points_of(AMPLE, [r.config for r in records]))
            for records in (hurried, lean)
        )
        assert ours > theirs

    # Fast settings are trained, and what would be leaner is verified before time is up.
    chosen = [r.config for r in hurried[4:]]
    factors = []
    for config in chosen:
        seconds = [
            step_seconds(AMPLE.values(c)) for c in AMPLE.expansions(config)
            if AMPLE.true_point(c)[1] * GIB <= AMPLE.limit_bytes
        ]  # fmt: skip
        factors.append(step_seconds(AMPLE.values(config)) / min(seconds))
    assert sorted(factors)[len(factors) // 2] < 1.5
    seen: set[frozenset] = set()
    verified = []
    for record in hurried:
        if lossy(record) in seen:
            verified.append(record.number)
        seen.add(lossy(record))
    assert verified
    assert verified[-1] >= len(hurried) - 2
    claims = hypervolume(trained_points(AMPLE, [r.config for r in hurried]), (3.5, 24.0))
    without = [r.config for r in hurried if r.number not in verified]
    assert claims > hypervolume(trained_points(AMPLE, without), (3.5, 24.0))


def test_the_last_trials_are_lean_once_there_is_no_time_to_verify():
    opening = [
        AMPLE.train(0, AMPLE.space.baseline(), 0),
        AMPLE.train(1, AMPLE.space.smallest(AMPLE.context), 0),
    ]
    spent = sum(record.outcome.seconds for record in opening)
    assert 4 * spent < LIMIT

    def third(limit: float):
        asked = FrontierProposer(
            AMPLE.space,
            AMPLE.context,
            LOSS,
            limit_bytes=AMPLE.limit_bytes,
            deadline=Deadline(0, limit),
        )
        for record in opening:
            asked.tell(record)
        return asked.ask(2)

    early, late = third(LIMIT), third(1.01 * spent)
    assert AMPLE.true_point(late)[1] < AMPLE.true_point(early)[1]
    assert step_seconds(AMPLE.values(late)) > step_seconds(AMPLE.values(early))
