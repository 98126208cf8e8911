"""Parts of sequences on several ranks: training as on one, attention that ends when it is left."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from autotune.core.errors import ModelError
from autotune.core.knob import run_stage
from autotune.knobs.checkpointing import CHECKPOINTING
from autotune.knobs.stages import ADAPT, Adaptation
from autotune.trial.layouts.context import SharedSequences
from autotune.trial.layouts.seat import Seat
from tests.ranks import meet, run_ranks
from tests.tiny_models import VOCAB, build

STEPS, ROWS, TOKENS = 5, 3, 12


def batches() -> list[dict[str, Tensor]]:
    chance = torch.Generator().manual_seed(1)
    drawn = [torch.randint(3, VOCAB, (ROWS, TOKENS + 1), generator=chance) for _ in range(STEPS)]
    return [{"input_ids": ids[:, :-1], "labels": ids[:, 1:]} for ids in drawn]


def prepared(family: str, *, recompute: bool) -> nn.Module:
    config = {"checkpointing": "full"} if recompute else {}
    return run_stage(ADAPT, Adaptation(model=build(family)), (CHECKPOINTING,), config).model


def loss_of(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    logits = model(input_ids=batch["input_ids"], use_cache=False).logits
    return cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())


def trained_alone(family: str, *, recompute: bool) -> tuple[list[float], dict[str, Tensor]]:
    model = prepared(family, recompute=recompute)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for batch in batches():
        loss = loss_of(model, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, {n: p.detach() for n, p in model.named_parameters()}


def train_part(
    seat: Seat,
    world: int,
    family: str,
    recompute: bool,
) -> tuple[list[float], dict[str, Tensor], float, float]:
    """Train on this rank's part of every sequence; also score one batch alone at the end."""
    meet(seat, world)
    model = prepared(family, recompute=recompute)
    mesh = init_device_mesh("cpu", (world,))
    shared = SharedSequences(model, mesh)
    spread = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for batch in batches():
        loss = loss_of(spread, shared.share(batch))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        told = loss.detach().clone()
        torch.distributed.all_reduce(told)
        losses.append(float(told) / world)
    model.eval()
    with torch.no_grad():
        with shared.alone():
            alone = float(loss_of(model, batches()[0]))
        together = loss_of(model, shared.share(batches()[0]))
        torch.distributed.all_reduce(together)
    return losses, {n: p.detach() for n, p in model.named_parameters()}, alone, float(together)


@pytest.mark.parametrize(
    ("family", "world", "recompute"),
    [("llama", 2, False), ("llama", 4, True), ("gpt2", 2, True), ("qwen3", 3, False)],
)
def test_trains_like_one_rank(family: str, world: int, recompute: bool) -> None:
    losses, parameters = trained_alone(family, recompute=recompute)
    found = run_ranks(world, f"{__name__}:train_part", world, family, recompute)
    for told, trained, alone, together in found:
        assert told == pytest.approx(losses, rel=1e-5)
        assert alone == pytest.approx(together / world, rel=1e-5)
        for name, parameter in parameters.items():
            torch.testing.assert_close(trained[name], parameter, rtol=1e-4, atol=1e-5)


def refuse(seat: Seat, world: int, case: str) -> str:
    """Do what cannot be done, and return what is said."""
    meet(seat, world)
    model = build("mistral")
    shared = SharedSequences(model, init_device_mesh("cpu", (world,)))
    tokens = torch.ones(2, 9 if case == "uneven" else 8, dtype=torch.long)
    if case == "window":
        for layer in model.modules():
            if getattr(layer, "config", None) is not None:
                layer.config.sliding_window = 4
    try:
        model(**shared.share({"input_ids": tokens}))
    except ModelError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("case", "said"), [("uneven", "9 tokens cannot be divided"), ("window", "look back")]
)
def test_says_what_cannot_be_shared(case: str, said: str) -> None:
    assert all(said in found for found in run_ranks(2, f"{__name__}:refuse", 2, case))


def test_one_value_for_each_sequence_stays() -> None:
    found = run_ranks(2, f"{__name__}:share_values", 2)
    assert found == [([0, 1, 2], [5, 6]), ([3, 4, 5], [5, 6])]


def share_values(seat: Seat, world: int) -> tuple[list[int], list[int]]:
    """Return the part of one row, and what two sequences have one value of."""
    meet(seat, world)
    shared = SharedSequences(build("llama"), init_device_mesh("cpu", (world,)))
    rows = {"ids": torch.arange(6)[None], "labels": torch.tensor([5, 6])}
    part = shared.share(rows)
    return part["ids"][0].tolist(), part["labels"].tolist()
