"""What every sampler owes the search: legal, new, the same after a resume, and learning."""

from __future__ import annotations

import warnings
from statistics import mean

import optuna
import pytest

from autotune.core.config import Config
from autotune.core.context import Context
from autotune.core.domains import Choice, Float, Int
from autotune.core.errors import UnknownName
from autotune.core.outcome import Crashed, Diverged, Stopped
from autotune.core.pareto import front
from autotune.core.record import TrialRecord
from autotune.core.space import Space
from autotune.core.units import GIB
from autotune.search import lessons
from autotune.search.proposers import PROPOSERS, Task, make_proposer
from autotune.search.samplers import Reads
from tests.knobs import KNOBS, LOSS, completed, ended, out_of_memory

CONTEXT = Context()
LIMIT = 4 * GIB
TRIALS = {"gp": 12}
"""The Gaussian process needs a second per trial once ten are completed."""

samplers = pytest.mark.parametrize("sampler", PROPOSERS)


def space(**domains):
    listed = {knob.name: domains[knob.name] for knob in KNOBS if knob.name in domains}
    return Space(name="mine", knobs=KNOBS, domains=listed)


LOSSY = ("share", "weight_bits", "lora.rank")
BIG = space(
    **{knob.name: knob.domain for knob in KNOBS if knob.name in LOSSY},
    checkpointing=Choice(("none", "full")),
    chunks=Int(1, 16, log=True),
    rate=Float(0.1, 10.0, log=True),
)  # fmt: skip
SMALL = space(
    **{"weight_bits": Choice((16, 4)), "lora.rank": Choice((0, 4, 8)), "chunks": Choice((2,))}
)


def proposer(sampler, where=BIG, seed=0):
    task = Task(space=where, context=CONTEXT, metric=LOSS, limit_bytes=LIMIT, seed=seed)
    return make_proposer(sampler, task)


def memory(config: Config) -> float:
    """Needed bytes: few configurations fit, and which ones can be learned."""
    values = config.complete(KNOBS)
    weights = 6.0 * (1 - values["share"]) * values["weight_bits"] / 16
    activations = {"none": 3.0, "every_other": 2.0, "full": 0.5}[values["checkpointing"]]
    return GIB * (weights + activations + 0.05 * values["lora.rank"])


def loss(config: Config) -> float:
    values = config.complete(KNOBS)
    return 2 + values["share"] + 1 / values["weight_bits"] - 0.02 * values["lora.rank"]


def train(number: int, config: Config) -> TrialRecord:
    """Run a trial of a made-up model."""
    if memory(config) > LIMIT:
        return out_of_memory(number, config, needed=int(memory(config)), limit=LIMIT)
    return completed(number, config, loss=loss(config), peak=memory(config), limit=LIMIT)


def search(asked, trials, first=0):
    records = []
    for number in range(first, first + trials):
        config = asked.ask(number)
        if config is None:
            break
        records.append(train(number, config))
        asked.tell(records[-1])
    return records


@samplers
def test_proposals_are_legal_and_never_repeated(sampler):
    records = search(proposer(sampler), TRIALS.get(sampler, 40))
    configs = [record.config for record in records]
    assert len(configs) == TRIALS.get(sampler, 40)
    assert len(set(configs)) == len(configs)
    assert all(BIG.reasons(config, CONTEXT) == () for config in configs)


@samplers
def test_a_resumed_search_proposes_what_it_would_have_proposed(sampler):
    trials = TRIALS.get(sampler, 30)
    whole = search(proposer(sampler), trials)
    resumed = proposer(sampler)
    for record in reversed(whole[:-2]):
        resumed.tell(record)
    assert search(resumed, 2, first=trials - 2) == whole[-2:]


@samplers
def test_another_seed_searches_elsewhere(sampler):
    one, other = (search(proposer(sampler, seed=seed), 5) for seed in (1, 2))
    assert [r.config for r in one] != [r.config for r in other]
    assert one == search(proposer(sampler, seed=1), 5)


@samplers
def test_a_space_is_exhausted_to_its_last_configuration(sampler):
    records = search(proposer(sampler, SMALL), 20)
    assert {record.config for record in records} == set(SMALL.enumerate(CONTEXT))
    assert len(records) == SMALL.count(CONTEXT) == 5


@samplers
def test_a_space_of_one_configuration_is_proposed_once(sampler):
    fixed = SMALL.narrowed({"weight_bits": "16", "lora.rank": "4"})
    asked = proposer(sampler, fixed)
    assert asked.ask(0) == Config({"lora.rank": 4, "chunks": 2})
    assert asked.ask(1) is None


@samplers
def test_running_trials_and_those_of_others_are_not_proposed(sampler):
    asked = proposer(sampler, SMALL)
    baseline, smallest = SMALL.baseline(), SMALL.smallest(CONTEXT)
    asked.tell(TrialRecord(number=0, config=baseline))
    asked.tell(completed(1, smallest))
    proposals = [asked.ask(number) for number in range(2, 6)]
    assert proposals[3] is None
    assert len({baseline, smallest, *proposals[:3]}) == 5


@samplers
def test_trials_that_failed_or_lie_outside_are_taken_note_of(sampler):
    asked = proposer(sampler)
    strange = Config({"share": 0.123, "colour": "red"})
    told = [
        ended(number, outcome, Config({"lora.rank": 4, "chunks": number + 2}), limit=LIMIT)
        for number, outcome in enumerate([Crashed(), Diverged(), Stopped()])
    ]
    for record in (*told, completed(3, strange), completed(4, loss=float("nan"))):
        asked.tell(record)
    proposals = {asked.ask(number) for number in range(5, 15)}
    assert len(proposals) == 10
    assert not proposals & {record.config for record in told}


@samplers
def test_asking_leaves_log_and_warnings_of_optuna_as_they_were(sampler, capsys):
    optuna.logging.set_verbosity(optuna.logging.INFO)
    before = list(warnings.filters)
    search(proposer(sampler), 3)
    assert optuna.logging.get_verbosity() == optuna.logging.INFO
    assert warnings.filters == before
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("sampler", ["frontier", "tpe", "nsga2"])
def test_samplers_that_learn_end_with_more_trials_that_fit(sampler):
    fits = {}
    for name in (sampler, "random"):
        runs = [search(proposer(name, seed=seed), 60) for seed in range(3)]
        fits[name] = mean(sum(r.feasible for r in run[30:]) for run in runs)
    assert fits[sampler] > fits["random"] + 3


def test_tpe_learns_from_trials_out_of_memory_only_if_they_are_told_as_infeasible(monkeypatch):
    def wasted():
        runs = [search(proposer("tpe", seed=seed), 50) for seed in range(4)]
        return mean(sum(not record.feasible for record in run) for run in runs)

    told_as_infeasible = wasted()
    # What a failed trial teaches Optuna's samplers: nothing.
    monkeypatch.setattr(lessons.Lessons, "_lesson", _only_feasible(lessons.Lessons._lesson))
    told_as_failed = wasted()
    assert told_as_infeasible < 0.7 * told_as_failed


def _only_feasible(lesson):
    return lambda self, record, worst: lesson(self, record, worst) if record.feasible else None


def test_the_front_of_a_search_comes_near_the_front_of_the_space():
    everything = BIG.narrowed({"chunks": "1", "rate": "1"})
    whole = [train(n, config) for n, config in enumerate(everything.enumerate(CONTEXT))]
    best = min(record.point(LOSS)[0] for record in front(whole, LOSS))
    found = search(proposer("tpe", everything), 30)
    assert min(record.point(LOSS)[0] for record in front(found, LOSS)) <= best + 0.05


@pytest.mark.parametrize("reads", Reads)
def test_lessons_say_what_each_sampler_reads(reads):
    from optuna.trial import TrialState

    from autotune.search.encoding import Encoding

    configs = [Config({"lora.rank": 4, "chunks": n}) for n in range(2, 8)]
    records = [
        completed(0, configs[0], loss=3.0, peak=GIB, limit=2 * GIB),
        completed(1, configs[1], loss=2.0, peak=3 * GIB, limit=2 * GIB),
        out_of_memory(2, configs[2], needed=4 * GIB, limit=2 * GIB),
        out_of_memory(3, configs[3], needed=GIB, limit=2 * GIB),
        ended(4, Crashed(), configs[4], limit=2 * GIB),
        ended(5, Stopped(), configs[5], limit=2 * GIB),
    ]
    told = lessons.Lessons(Encoding(BIG), LOSS, LIMIT, reads).of(records)
    states = [trial.state for trial in told]
    memory = [trial.constraints["memory"] for trial in told]
    if reads is Reads.NOTHING:
        assert told == []
    elif reads is Reads.COMPLETED:
        assert states == [TrialState.COMPLETE] * 4
        assert told[2].values == [3.0, 4.0 * GIB]
        assert memory == [-1.0, 1.0, 2.0, pytest.approx(1 / 1024)]
    else:
        assert states == [TrialState.COMPLETE] * 2 + [TrialState.PRUNED] * 3
        assert memory[:3] == [-1.0, 1.0, 2.0]
        assert [trial.constraints["failed"] for trial in told] == [0, 0, 0, 0, 1]


def test_an_unknown_sampler_lists_the_known_ones():
    with pytest.raises(UnknownName) as caught:
        proposer("tpee")
    assert caught.value.help == "did you mean 'tpe'?  known: frontier, gp, nsga2, qmc, random, tpe"
