"""Stages of a pipeline: training and scores as on one rank, whatever family, schedule and split."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.functional import cross_entropy

from autotune.core.errors import ModelError
from autotune.core.knob import run_stage
from autotune.core.outcome import Score
from autotune.knobs import BUILTIN
from autotune.knobs.chunked_loss import chunked_cross_entropy
from autotune.knobs.stages import ADAPT, Adaptation
from autotune.trial.layouts.cutting import cut
from autotune.trial.layouts.pipeline import Stage
from autotune.trial.layouts.replicas import Parts
from autotune.trial.layouts.seat import Seat
from autotune.trial.layouts.team import Micro, alone
from autotune.trial.layouts.whole import Skeleton
from tests import tiny_models
from tests.ranks import RankFailed, meet, run_ranks
from tests.tiny_models import CAUSAL, VOCAB

STEPS, ROWS, TOKENS, PIECES, MOST_NORM = 4, 8, 6, 4, 0.5


@dataclass(frozen=True)
class Case:
    """What is trained, and how."""

    family: str = "llama"
    schedule: str = "1f1b"
    stages: int = 2
    blocks: int = 2
    chunks: int = 1
    knobs: Mapping[str, object] = field(default_factory=dict)
    tied: bool = False
    narrow: bool = False


@dataclass
class Trained:
    """What one rank, or the only one, has to tell."""

    losses: list[float]
    parameters: dict[str, Tensor]
    score: float
    norms: list[float]
    held: int = 0
    most_flying: int = 0


def build(case: Case) -> nn.Module:
    settings = tiny_models.CONFIGS[case.family]
    key = "n_layer" if case.family == "gpt2" else "num_hidden_layers"
    before = dict(settings)
    settings.update({key: case.blocks, "tie_word_embeddings": case.tied or case.family == "gpt2"})
    try:
        model = tiny_models.build(case.family)
    finally:
        settings.clear()
        settings.update(before)
    model.config.use_cache = False
    return run_stage(ADAPT, Adaptation(model=model), BUILTIN, dict(case.knobs)).model


def batches(case: Case) -> list[dict[str, Tensor]]:
    chance = torch.Generator().manual_seed(3)
    found = []
    for _ in range(STEPS):
        ids = torch.randint(3, VOCAB, (ROWS, TOKENS + 1), generator=chance)
        labels = ids[:, 1:] if case.family in CAUSAL else ids[:, -1] % 3
        mask = {} if case.family in CAUSAL else {"attention_mask": (ids[:, :-1] > 5).long()}
        found.append({"input_ids": ids[:, :-1], **mask, "labels": labels})
    return found


def loss_of(case: Case, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=case.narrow):
        return full_loss_of(case, model, batch)


def full_loss_of(case: Case, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    if case.chunks > 1:
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        head = inner.get_output_embeddings()
        assert type(head) is nn.Linear
        hidden = inner.base_model(**inputs).last_hidden_state
        return chunked_cross_entropy(hidden, head.weight, batch["labels"], case.chunks)
    return cross_entropy(model(**inputs).logits.flatten(0, -2), batch["labels"].flatten())


def micro_of(case: Case, batch: Mapping[str, Tensor]) -> Micro:
    pieces = {name: tensor.chunk(PIECES) for name, tensor in batch.items()}
    return Micro(
        batches=iter([{n: p[i] for n, p in pieces.items()} for i in range(PIECES)]),
        count=PIECES,
        loss=lambda piece, model: loss_of(case, model, piece) / PIECES,
        backward=torch.Tensor.backward,
        enter=str,
    )


def score_of(case: Case, model: nn.Module) -> dict[str, Score]:
    model.eval()
    with torch.no_grad():
        losses = [float(loss_of(case, model, batch)) for batch in batches(case)]
    model.train()
    return {"loss": Score(value=sum(losses) / len(losses))}


def train_alone(case: Case) -> Trained:
    model = build(case)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    losses, norms = [], []
    for batch in batches(case):
        losses.append(float(alone(model).accumulate(micro_of(case, batch), torch.zeros(()))))
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), MOST_NORM)))
        optimizer.step()
        optimizer.zero_grad()
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    return Trained(losses, parameters, score_of(case, model)["loss"].value, norms)


def train_stage(seat: Seat, case: Case) -> Trained:
    """Train one stage of the pipeline, and put the model together in the end."""
    meet(seat, case.stages)
    model = build(case)
    skeleton = Skeleton(model)
    mesh = init_device_mesh("cpu", (case.stages,))
    stage = Stage(model, mesh, case.schedule)
    parts = Parts(model)
    optimizer = torch.optim.SGD(parts.parameters, lr=0.05)
    losses, norms, most = [], [], 0
    swap = stage._swap

    def counted(*given: object) -> Tensor | None:
        nonlocal most
        most = max(most, len(stage._flying))
        return swap(*given)

    stage._swap = counted
    for batch in batches(case):
        total = stage.run(micro_of(case, batch), torch.zeros(()))
        losses.append(float(stage.tell_all(total)))
        trained = parts.take_gradients()
        norm = parts.norm((mesh.get_group(),), stage.repeated)
        nn.utils.clip_grads_with_norm_(trained, MOST_NORM, norm)
        norms.append(float(norm))
        optimizer.step()
        optimizer.zero_grad()
    scores = stage.evaluate(lambda part: score_of(case, part))
    assert model.training
    for name, tensor in skeleton.tensors(model, stage):
        skeleton.fill(name, tensor)
    whole = {name: p.detach() for name, p in skeleton.model.named_parameters()}
    held = sum(p.numel() for p in {id(p): p for p in model.parameters()}.values())
    return Trained(losses, whole, scores["loss"].value, norms, held, most)


LORA = {"lora.rank": 4}
CASES = {
    "llama": Case(),
    "tied": Case(schedule="gpipe", tied=True, blocks=3),
    "gpt2": Case(family="gpt2", stages=4, blocks=5),
    "adapters": Case(family="gpt2", schedule="gpipe", knobs=LORA),
    "bert": Case(family="bert", stages=3, blocks=3, knobs={"checkpointing": "full"}),
    "chunks": Case(family="qwen2", chunks=3, tied=True, knobs={"checkpointing": "full"}),
    "all": Case(stages=3, blocks=3, chunks=2, knobs={**LORA, "checkpointing": "full"}),
    "opt": Case(family="opt", tied=True),
    "frozen": Case(blocks=4, knobs={"freeze.layers": 0.5, "freeze.embeddings": "yes"}),
    "narrow": Case(family="bert", narrow=True),
}


@pytest.mark.parametrize("name", CASES)
def test_trains_like_one_rank(name: str) -> None:
    case = CASES[name]
    expected = train_alone(case)
    found = run_ranks(case.stages, f"{__name__}:train_stage", case)
    near = 2.0**-9 if case.narrow else 1e-5  # sums in bf16 are rounded there
    for stage in found:
        assert stage.losses == pytest.approx(expected.losses, rel=near)
        assert stage.norms == pytest.approx(expected.norms, rel=10 * near)
        assert stage.score == pytest.approx(expected.score, rel=near)
    assert found[0].parameters.keys() == expected.parameters.keys()
    for parameter, value in expected.parameters.items():
        torch.testing.assert_close(found[0].parameters[parameter], value, rtol=10 * near, atol=near)
    whole = sum(parameter.numel() for parameter in expected.parameters.values())
    assert max(stage.held for stage in found) < whole
    twice = VOCAB * tiny_models.HIDDEN if case.tied or case.family == "gpt2" else 0
    assert sum(stage.held for stage in found) == whole + twice
    in_flight = [PIECES] * case.stages if case.schedule == "gpipe" else range(case.stages, 0, -1)
    assert [stage.most_flying for stage in found] == [min(PIECES, most) for most in in_flight]


def test_says_which_models_cannot_be_split() -> None:
    for family, said in (("t5", "2 stacks"), ("bart", "2 stacks")):
        model = tiny_models.build(family)
        with pytest.raises(ModelError, match=said):
            cut(model, 0, 2, lambda states: states)


@pytest.mark.parametrize("leaver", [0, 1, 2])
def test_the_others_fail_when_a_stage_is_gone(leaver: int) -> None:
    found = run_ranks(3, f"{__name__}:train_until_one_leaves", leaver)
    for rank, error in enumerate(found):
        assert (error == "") == (rank == leaver), found


def train_until_one_leaves(seat: Seat, leaver: int) -> str:
    """Train again and again; one rank ends after the first step. Return what the others hear."""
    meet(seat, 3)
    case = CASES["bert"]
    stage = Stage(build(case), init_device_mesh("cpu", (3,)), "1f1b")
    try:
        while True:
            stage.run(micro_of(case, batches(case)[0]), torch.zeros(()))
            if seat.rank == leaver:
                return ""
    except RuntimeError as error:
        return str(error)


def test_a_rank_that_is_killed_is_told() -> None:
    with pytest.raises(RankFailed, match="rank 1 ended without a result"):
        run_ranks(2, f"{__name__}:die", patience=30.0)


def die(seat: Seat) -> None:
    """Have one rank be killed while the other waits for it."""
    meet(seat, 2)
    if seat.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    with contextlib.suppress(RuntimeError):  # which it may be told before the test is
        torch.distributed.barrier()
