"""Parameter servers: updates of one rank when they wait, bounded staleness when they do not."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from autotune.core.context import Device
from autotune.core.errors import ModelError
from autotune.core.knob import run_stage
from autotune.core.outcome import Score
from autotune.knobs import BUILTIN
from autotune.knobs.optimizers import build_optimizer
from autotune.knobs.stages import ADAPT, STEP, Adaptation, DataPlan, LayoutPlan, OptimPlan, StepPlan
from autotune.trial.held import reachable_bytes
from autotune.trial.layouts.seat import Seat
from autotune.trial.layouts.server import divide, serve_or_work
from autotune.trial.layouts.team import Team
from autotune.trial.loop import schedule, train_step
from tests.ranks import meet, run_ranks
from tests.tiny_models import VOCAB, build

STEPS, ROWS, TOKENS = 6, 8, 6
DATA = DataPlan(sequence_length=TOKENS, global_batch=ROWS)


@dataclass(frozen=True)
class Case:
    """What is trained, and by whom."""

    family: str = "llama"
    optimizer: str = "sgd"
    workers: int = 2
    servers: int = 1
    staleness: int = 0
    knobs: Mapping[str, object] = field(default_factory=dict)
    steps: int = STEPS

    @property
    def layout(self) -> LayoutPlan:
        return LayoutPlan(
            ranks=self.workers + self.servers,
            data="server",
            servers=self.servers,
            staleness=self.staleness,
        )


@dataclass
class Trained:
    """What one rank, or the only one, has to tell."""

    losses: list[float]
    score: float | None
    parameters: dict[str, Tensor]
    held: int
    states: int
    began: list[float]


class NextToken:
    """An objective of a loss alone; some ranks take their time."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.began: list[float] = []

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor], plan: StepPlan) -> Tensor:
        self.began.append(time.monotonic())
        time.sleep(self.seconds)
        logits = model(input_ids=batch["input_ids"], use_cache=False).logits
        return cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())


def batches(steps: int) -> list[dict[str, Tensor]]:
    chance = torch.Generator().manual_seed(5)
    drawn = [torch.randint(3, VOCAB, (ROWS, TOKENS + 1), generator=chance) for _ in range(steps)]
    return [{"input_ids": ids[:, :-1], "labels": ids[:, 1:]} for ids in drawn]


def score_of(model: nn.Module) -> dict[str, Score]:
    with torch.no_grad():
        loss = NextToken().loss(model, batches(1)[0], StepPlan())
    return {"loss": Score(value=float(loss))}


def train(
    case: Case, team: Team, *, seconds: float = 0.0, accumulation: int = 2, rate: float = 1e-3
) -> Trained:
    """Train as the lifecycle of a trial does."""
    model = run_stage(ADAPT, Adaptation(model=build(case.family)), BUILTIN, dict(case.knobs)).model
    model = team.arrange(team.place(model, lambda whole: whole), DATA)
    plan = OptimPlan(name=case.optimizer)
    optimizer = team.optimizer(lambda t, around: build_optimizer(t, plan, rate, model, around))
    rates, objective = schedule(optimizer, case.steps), NextToken(seconds)
    losses = []
    for batch in batches(case.steps):
        step = run_stage(STEP, StepPlan(accumulation=accumulation), BUILTIN, dict(case.knobs))
        device = torch.device("cpu")
        losses.append(
            train_step(objective, model, optimizer, batch, step, device=device, team=team)
        )
        rates.step()
        for told in step.after_step:
            told(model, 1.0)
    states = reachable_bytes(model, optimizer) - reachable_bytes(model)
    team.rest()
    team.model = model
    scores = team.evaluate(score_of)
    kept = team.whole()
    parameters = {} if kept is None else {n: p.detach() for n, p in kept.named_parameters()}
    return Trained(
        losses=losses,
        score=scores["loss"].value if scores else None,
        parameters=parameters,
        held=reachable_bytes(model),
        states=states,
        began=objective.began,
    )


def train_rank(seat: Seat, case: Case, slow: float, rate: float = 1e-3) -> Trained:
    """Be a worker or a server; the last worker is slow."""
    meet(seat, case.layout.ranks)
    team = serve_or_work(case.layout, SimpleNamespace(device=Device(kind="cpu")), seat.rank)
    seconds = slow if seat.rank == case.workers - 1 else 0.0
    accumulation = 1 if case.staleness and case.workers > 1 else 2
    return train(case, team, seconds=seconds, accumulation=accumulation, rate=rate)


CASES = {
    "sgd": Case(workers=4),
    "adamw": Case(family="gpt2", optimizer="adamw", servers=2),
    "muon": Case(optimizer="muon", servers=3),
    "adapters": Case(optimizer="lion", knobs={"lora.rank": 4}, servers=2),
    "masks": Case(knobs={"prune.unstructured": 0.5}, servers=2),
    "one worker that may run ahead": Case(optimizer="adamw", workers=1, servers=2, staleness=2),
}


@pytest.mark.parametrize("name", CASES)
def test_trains_like_one_rank(name: str) -> None:
    case = CASES[name]
    expected = train(case, Team())
    found = run_ranks(case.layout.ranks, f"{__name__}:train_rank", case, 0.0)
    for rank in found:
        assert rank.losses == pytest.approx(expected.losses, rel=1e-5)
    assert found[0].score == pytest.approx(expected.score, rel=1e-5)
    assert [rank.score for rank in found[1:]] == [None] * (len(found) - 1)
    loose = {"rtol": 1e-4, "atol": 1e-5} if case.optimizer == "sgd" else {"rtol": 0, "atol": 1e-3}
    for parameter, value in expected.parameters.items():
        torch.testing.assert_close(found[0].parameters[parameter], value, **loose)


def test_who_holds_what() -> None:
    case = CASES["adamw"]
    alone = train(case, Team())
    found = run_ranks(case.layout.ranks, f"{__name__}:train_rank", case, 0.0)
    workers, servers = found[: case.workers], found[case.workers :]
    assert all(worker.held == alone.held and worker.states == 0 for worker in workers)
    assert sum(server.held for server in servers) == pytest.approx(alone.held, rel=0.05)
    assert max(server.held for server in servers) < 0.6 * alone.held
    assert sum(server.states for server in servers) == pytest.approx(alone.states, rel=0.01)
    assert not any(server.began for server in servers)


def test_no_worker_runs_too_far_ahead() -> None:
    """Starts of steps are told on one clock: when one starts, the slowest has done enough."""
    case = Case(workers=3, servers=2, staleness=2, steps=8)
    found = run_ranks(case.layout.ranks, f"{__name__}:train_rank", case, 0.1)
    fast, slow = found[0].began, found[case.workers - 1].began
    ahead = [step - sum(moment < began for moment in slow) for step, began in enumerate(fast)]
    # The slowest may have begun one step that it has not done yet.
    assert case.staleness - 1 <= max(ahead) <= case.staleness


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_updates_of_workers_add_up_to_those_of_one_rank(optimizer: str) -> None:
    """Gradients are a few small steps old: nearly the same way is gone, and not one per worker.

    It is shorter, since a worker's gradient is noisier than the mean, and is divided by its size:
    by clipping, or by AdamW. Two of them at the full rate would go further than one rank.
    """
    case = Case(optimizer=optimizer, workers=2, staleness=4, steps=12)
    start = dict(build(case.family).named_parameters())
    expected = train(case, Team(), accumulation=1, rate=1e-5)
    found = run_ranks(case.layout.ranks, f"{__name__}:train_rank", case, 0.0, 1e-5)
    alone, together = (
        torch.cat([(trained[n] - p.detach()).flatten() for n, p in start.items()])
        for trained in (expected.parameters, found[0].parameters)
    )
    assert 0.4 < float(alone @ together / (alone @ alone)) < 1.1


@pytest.mark.parametrize(("leaver", "staleness"), [(0, 0), (1, 0), (2, 0), (2, 2)])
def test_the_others_fail_when_a_rank_is_gone(leaver: int, staleness: int) -> None:
    case = Case(servers=1, staleness=staleness, steps=1)
    found = run_ranks(case.layout.ranks, f"{__name__}:train_until_one_leaves", case, leaver)
    for rank, error in enumerate(found):
        assert (error == "") == (rank == leaver), found


def train_until_one_leaves(seat: Seat, case: Case, leaver: int) -> str:
    """Train again and again; one rank ends after the first time. Return what the others hear."""
    meet(seat, case.layout.ranks)
    team = serve_or_work(case.layout, SimpleNamespace(device=Device(kind="cpu")), seat.rank)
    try:
        while True:
            train(case, team, accumulation=1)
            if seat.rank == leaver:
                return ""
    except RuntimeError as error:
        return str(error)


def test_servers_hold_about_equally_much() -> None:
    parameters = list(build("gpt2").parameters())
    for servers in (2, 3, 5):
        held = [sum(parameters[n].numel() for n in part) for part in divide(parameters, servers)]
        assert sum(held) == sum(p.numel() for p in parameters)
        assert max(held) <= max(1.1 * sum(held) / servers, max(p.numel() for p in parameters))


def test_says_that_there_are_too_many_servers() -> None:
    with pytest.raises(ModelError, match="3 servers cannot share 2 parameters"):
        divide([torch.ones(2), torch.ones(3)], 3)
