"""What every objective owes a run, for those that hear, see, or write: see `test_objectives.py`."""

from __future__ import annotations

import inspect
import itertools
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from autotune.core.context import Device
from autotune.core.errors import ModelError
from autotune.core.workload import Workload, WorkloadFacts
from autotune.knobs.stages import DataPlan, EvalPlan, LoadPlan, StepPlan
from autotune.memory.rehearsal import CannotRehearse
from autotune.memory.rehearse import rehearse
from autotune.trial.objective import OBJECTIVES, Batch, Objective, load_objective
from autotune.trial.spec import TrialSpec
from tests.contract.test_objectives import OVER_TEXT
from tests.tiny_objectives import CASES, Case

BATCH = 8
_DRAWS_ONLY_TO_DROP = "self.layerdrop > 0" in inspect.getsource(WhisperEncoder.forward)
"""Older Whispers of transformers draw a number for every layer, and look at it."""


@pytest.fixture(scope="module", params=sorted(CASES))
def described(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[WorkloadFacts, Path]:
    """Facts of a tiny model and data of one's own, and the cache they were prepared into."""
    folder, case = tmp_path_factory.mktemp(request.param), CASES[request.param]
    workload = Workload(
        objective=request.param,
        model=str(case.save_model(folder / "model")),
        data=str(case.data(folder)),
        steps=3,
        global_batch=BATCH,
        sequence_length=case.length,
        eval_examples=10,
    )
    facts = load_objective(request.param)(workload, folder / "cache").describe()
    return facts, folder / "cache"


@pytest.fixture
def objective(described: tuple[WorkloadFacts, Path]) -> Objective:
    """The objective as a trial makes it, which must find what was prepared."""
    facts, cache = described
    return load_objective(facts.workload.objective)(facts.workload, cache)


@pytest.fixture
def case(described: tuple[WorkloadFacts, Path]) -> Case:
    return CASES[described[0].workload.objective]


@pytest.fixture
def plan(case: Case) -> DataPlan:
    return DataPlan(sequence_length=case.length, global_batch=BATCH)


def first(objective: Objective, count: int, plan: DataPlan, seed: int = 0) -> list[Batch]:
    return list(itertools.islice(objective.train_batches(plan, seed), count))


def same(a: Batch, b: Batch) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def pieces(batch: Batch, count: int) -> Iterator[Batch]:
    for place in range(count):
        yield {name: tensor.chunk(count)[place] for name, tensor in batch.items()}


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def test_every_objective_is_held_to_its_contract() -> None:
    assert {*OVER_TEXT, *CASES} == set(OBJECTIVES.names())


def test_facts_describe_the_model_that_is_built(
    described: tuple[WorkloadFacts, Path], objective: Objective, case: Case
) -> None:
    facts, _ = described
    model: Any = objective.build(LoadPlan(), seed=0)
    assert facts.model.parameters == sum(p.numel() for p in model.parameters())
    shape = (facts.model.layers, facts.model.hidden, facts.model.ffn)
    assert shape == (2, 32, 64)
    assert (facts.model.heads, facts.model.kv_heads) == (4, 4)
    assert facts.model.family == model.config.model_type
    assert facts.model.pretrained
    head = model.get_output_embeddings()
    assert facts.model.vocab == (0 if head is None else head.out_features)
    assert facts.model.tied == (
        head is not None and head.weight is model.get_input_embeddings().weight
    )
    assert facts.workload.sequence_length == case.length


def test_describing_again_finds_the_same(
    described: tuple[WorkloadFacts, Path], tmp_path: Path
) -> None:
    facts, cache = described
    kind = load_objective(facts.workload.objective)
    assert kind(facts.workload, tmp_path).describe() == facts
    assert kind(facts.workload, cache).describe() == facts


def test_trials_prepare_nothing_unless_the_cache_is_gone(
    described: tuple[WorkloadFacts, Path],
    plan: DataPlan,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    facts, cache = described
    kind = load_objective(facts.workload.objective)
    batch = first(kind(facts.workload, tmp_path), 1, plan)[0]
    monkeypatch.setattr(kind, "look", lambda self: pytest.fail("looked at the data again"))
    assert same(first(kind(facts.workload, cache), 1, plan)[0], batch)
    kind(facts.workload, cache).build(LoadPlan(), seed=0)


def test_batches_follow_from_the_seed_and_have_one_shape(
    objective: Objective, plan: DataPlan
) -> None:
    some = first(objective, 30, plan)
    assert all(same(a, b) for a, b in zip(some, first(objective, 30, plan), strict=True))
    assert not same(some[0], first(objective, 1, plan, seed=1)[0])
    shapes = {tuple((name, t.shape, t.dtype) for name, t in batch.items()) for batch in some}
    assert len(shapes) == 1
    assert all(t.shape[0] == BATCH and t.device.type == "cpu" for t in some[0].values())


def test_where_data_is_kept_changes_no_batch(objective: Objective, plan: DataPlan) -> None:
    mapped = first(objective, 20, replace(plan, memory_map=True))
    assert all(same(a, b) for a, b in zip(first(objective, 20, plan), mapped, strict=True))


def test_every_example_comes_once_in_each_pass(objective: Objective, plan: DataPlan) -> None:
    batches = first(objective, 272, replace(plan, global_batch=1))
    order = [b"".join(t.numpy().tobytes() for t in batch.values()) for batch in batches]
    counts = Counter(order)
    assert set(counts.values()) == {4}
    assert order[: len(counts)] != order[len(counts) : 2 * len(counts)]


def test_the_loss_is_finite_and_reaches_every_weight_that_trains(
    objective: Objective, plan: DataPlan
) -> None:
    model = objective.build(LoadPlan(), seed=0)
    assert model.training
    loss = objective.loss(model, first(objective, 1, plan)[0], StepPlan())
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    assert math.isfinite(loss.item())
    loss.backward()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert gradients(model).keys() == trained


@pytest.mark.parametrize("count", [2, 8])
def test_micro_batches_average_to_the_global_batch(
    objective: Objective, plan: DataPlan, count: int
) -> None:
    model, batch = objective.build(LoadPlan(), seed=0), first(objective, 1, plan)[0]
    whole = objective.loss(model, batch, StepPlan())
    whole.backward()
    expected = gradients(model)
    step = StepPlan(accumulation=count)
    parts = torch.stack([objective.loss(model, micro, step) for micro in pieces(batch, count)])
    parts.mean().backward()
    torch.testing.assert_close(parts.mean(), whole)
    torch.testing.assert_close(gradients(model), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("chunks", [4, 16])
def test_a_loss_in_pieces_is_the_plain_one(
    described: tuple[WorkloadFacts, Path], objective: Objective, plan: DataPlan, chunks: int
) -> None:
    if not described[0].model.vocab:
        pytest.skip("no vocabulary, so the knob is blocked")
    model, batch = objective.build(LoadPlan(), seed=0), first(objective, 1, plan)[0]
    whole = objective.loss(model, batch, StepPlan())
    whole.backward()
    expected = gradients(model)
    loss = objective.loss(model, batch, StepPlan(loss_chunks=chunks))
    loss.backward()
    torch.testing.assert_close(loss, whole, rtol=1e-5, atol=0)
    torch.testing.assert_close(gradients(model), expected, rtol=1e-4, atol=1e-6)


def test_building_honours_dtype_attention_and_seed(
    objective: Objective, plan: DataPlan, capfd: pytest.CaptureFixture[str]
) -> None:
    wide: Any = objective.build(LoadPlan(), seed=0)
    narrow: Any = objective.build(LoadPlan(dtype="bfloat16", attention="eager"), seed=0)
    assert {p.dtype for p in wide.parameters()} == {torch.float32}
    assert {p.dtype for p in narrow.parameters()} == {torch.bfloat16}
    assert narrow.config._attn_implementation == "eager"
    assert not narrow.config.use_cache
    again = objective.build(LoadPlan(), seed=0)
    weights = zip(wide.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in weights)
    batch = first(objective, 1, plan)[0]
    losses = [objective.loss(model, batch, StepPlan()) for model in (wide, narrow)]
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=0.05)
    assert capfd.readouterr() == ("", "")


def test_a_model_of_shapes_alone_has_those_of_the_real_one(objective: Objective) -> None:
    plan = LoadPlan(dtype="bfloat16")
    real = objective.build(plan, seed=0)
    shapes = objective.build(replace(plan, shapes_only=True), seed=0)
    expected = {name: (p.shape, p.dtype) for name, p in real.named_parameters()}
    assert {name: (p.shape, p.dtype) for name, p in shapes.named_parameters()} == expected


def test_random_weights_are_the_same_in_every_dtype(
    described: tuple[WorkloadFacts, Path], case: Case, tmp_path: Path
) -> None:
    facts, _ = described
    folder = case.save_model(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    objective = load_objective(facts.workload.objective)(
        replace(facts.workload, model=str(folder)), tmp_path
    )
    found = objective.describe()
    assert not found.model.pretrained
    assert "has no weights" in found.note
    wide = objective.build(LoadPlan(), seed=3)
    narrow = objective.build(LoadPlan(dtype="bfloat16"), seed=3)
    for a, b in zip(wide.parameters(), narrow.parameters(), strict=True):
        assert torch.equal(a.bfloat16(), b)


def test_evaluation_gives_every_metric_and_leaves_the_model_as_it_was(
    described: tuple[WorkloadFacts, Path], objective: Objective, case: Case
) -> None:
    facts, _ = described
    model, plan = objective.build(LoadPlan(), seed=0), EvalPlan(batch=4)
    batches = objective.eval_batches(plan, case.length)
    assert [len(batch[case.inputs]) for batch in batches] == [4, 4, 2]
    scores = objective.evaluate(model, batches, plan)
    assert scores.keys() == {metric.name for metric in facts.metrics}
    for metric in facts.metrics:
        score = scores[metric.name]
        assert score.n >= 10
        assert score.stderr is not None
        assert 0 <= score.stderr < max(1.0, score.value)
        assert 0 <= score.value <= 1 if metric.maximize else score.value > 0
    assert model.training
    assert not gradients(model)
    other = EvalPlan(batch=10, loss_chunks=7)
    again = objective.evaluate(model, objective.eval_batches(other, case.length), other)
    for name, score in scores.items():
        assert again[name].value == pytest.approx(score.value, rel=1e-4)
        assert again[name].n == score.n


def test_what_was_trained_is_a_model_to_start_from(
    described: tuple[WorkloadFacts, Path],
    objective: Objective,
    case: Case,
    plan: DataPlan,
    tmp_path: Path,
) -> None:
    facts, _ = described
    model: Any = objective.build(LoadPlan(), seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    objective.loss(model, first(objective, 1, plan)[0], StepPlan()).backward()
    optimizer.step()
    folder = case.save_model(tmp_path / "trained")
    model.save_pretrained(folder)
    reloaded: Any = load_objective(facts.workload.objective)(
        replace(facts.workload, model=str(folder)), tmp_path / "cache"
    )
    assert reloaded.describe().data_fingerprint == facts.data_fingerprint
    batches = objective.eval_batches(EvalPlan(), case.length)
    expected = objective.evaluate(model, batches, EvalPlan())
    assert reloaded.evaluate(reloaded.build(LoadPlan(), seed=9), batches, EvalPlan()) == expected


def test_a_trial_can_be_rehearsed(described: tuple[WorkloadFacts, Path], tmp_path: Path) -> None:
    facts, cache = described
    spec = TrialSpec(
        number=0,
        config={},
        facts=facts,
        device=Device(kind="cpu"),
        threads=1,
        limit_bytes=2**34,
        limit_seconds=60,
        cache=str(cache),
        log=str(tmp_path / "log.txt"),
    )
    if facts.model.family == "whisper" and not _DRAWS_ONLY_TO_DROP:
        with pytest.raises(CannotRehearse, match="reads a truth value"):
            rehearse(spec)
    else:
        assert rehearse(spec).note == ""


def test_a_named_teacher_is_refused_and_not_ignored(
    described: tuple[WorkloadFacts, Path], tmp_path: Path
) -> None:
    facts, _ = described
    workload = replace(facts.workload, teacher=facts.workload.model)
    with pytest.raises(ModelError, match="no way to learn from a named teacher"):
        load_objective(workload.objective)(workload, tmp_path).describe()
