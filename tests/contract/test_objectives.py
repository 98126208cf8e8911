"""What every objective owes a run and its trials: a new objective in the registry is tested too."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autotune.core.workload import Workload, WorkloadFacts
from autotune.knobs.stages import DataPlan, EvalPlan, LoadPlan, StepPlan
from autotune.trial.objective import OBJECTIVES, Batch, Objective, load_objective
from autotune.trial.training import PROBE_STEPS
from tests import tiny_folders

NAMES = OBJECTIVES.names()
OVER_TEXT = ("causal_lm", "text_classification")
"""Objectives that are tried here; `test_modalities.py` tries the others."""

PLAN = DataPlan(sequence_length=16, global_batch=8)
SIZES = {"steps": 3, "global_batch": 8, "sequence_length": 16, "eval_examples": 10}


@pytest.fixture(scope="module", params=OVER_TEXT)
def described(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[WorkloadFacts, Path]:
    """Facts of a tiny model and data of one's own, and the cache they were prepared into."""
    folder = tmp_path_factory.mktemp(request.param)
    workload = Workload(
        objective=request.param,
        model=str(tiny_folders.save_model(folder / "model", request.param)),
        data=str(tiny_folders.write_rows(folder / "rows.jsonl")),
        **SIZES,
    )
    facts = load_objective(request.param)(workload, folder / "cache").describe()
    return facts, folder / "cache"


@pytest.fixture
def objective(described: tuple[WorkloadFacts, Path]) -> Objective:
    """The objective as a trial makes it, which must find what was prepared."""
    facts, cache = described
    return load_objective(facts.workload.objective)(facts.workload, cache)


def first(objective: Objective, count: int, plan: DataPlan = PLAN, seed: int = 0) -> list[Batch]:
    return list(itertools.islice(objective.train_batches(plan, seed), count))


def same(a: Batch, b: Batch) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def halves(batch: Batch) -> Iterator[Batch]:
    for half in range(2):
        yield {name: tensor.chunk(2)[half] for name, tensor in batch.items()}


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_the_default_of_an_objective_needs_nothing(name: str, tmp_path: Path) -> None:
    facts = load_objective(name)(Workload(objective=name), tmp_path).describe()
    for field in fields(Workload):
        if field.type in ("int", "float") and field.name != "seed":
            assert getattr(facts.workload, field.name) > 0, field.name
    for number in ("layers", "heads", "kv_heads", "hidden", "ffn", "parameters"):
        assert getattr(facts.model, number) > 0, number
    assert facts.model.name
    assert facts.model.family
    assert "sha256" in facts.data
    assert len(facts.data_fingerprint) == 64
    assert WorkloadFacts.from_json(json.loads(json.dumps(facts.to_json()))) == facts


def test_facts_describe_the_model_that_is_built(
    described: tuple[WorkloadFacts, Path], objective: Objective
) -> None:
    facts, _ = described
    model = objective.build(LoadPlan(), seed=0)
    assert facts.model.parameters == sum(p.numel() for p in model.parameters())
    assert (facts.model.layers, facts.model.hidden, facts.model.ffn) == (2, 32, 64)
    assert facts.model.pretrained
    assert facts.model.tied == (model.get_output_embeddings() is model.get_input_embeddings())
    assert {name: getattr(facts.workload, name) for name in SIZES} == SIZES


def test_describing_again_finds_the_same(
    described: tuple[WorkloadFacts, Path], tmp_path: Path
) -> None:
    facts, cache = described
    kind = load_objective(facts.workload.objective)
    assert kind(facts.workload, tmp_path).describe() == facts
    assert kind(facts.workload, cache).describe() == facts


def test_trials_prepare_nothing_unless_the_cache_is_gone(
    described: tuple[WorkloadFacts, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts, cache = described
    kind = load_objective(facts.workload.objective)
    alone = kind(facts.workload, tmp_path)
    batch = first(alone, 1)[0]
    monkeypatch.setattr(kind, "look", lambda self: pytest.fail("looked at the data again"))
    assert same(first(kind(facts.workload, cache), 1)[0], batch)
    kind(facts.workload, cache).build(LoadPlan(), seed=0)


def test_batches_follow_from_the_seed_and_have_one_shape(objective: Objective) -> None:
    some = first(objective, 30)
    assert all(same(a, b) for a, b in zip(some, first(objective, 30), strict=True))
    assert not same(some[0], first(objective, 1, seed=1)[0])
    shapes = {tuple((name, t.shape, t.dtype) for name, t in batch.items()) for batch in some}
    assert len(shapes) == 1
    assert all(t.shape[0] == 8 and t.device.type == "cpu" for t in some[0].values())
    assert some[0]["input_ids"].shape == (8, 16)


def test_every_sequence_comes_once_in_each_pass(objective: Objective) -> None:
    single = DataPlan(sequence_length=16, global_batch=1)
    order = [tuple(batch["input_ids"][0].tolist()) for batch in first(objective, 1500, single)]
    counts = Counter(order)
    assert len(counts) > 30
    assert max(counts.values()) - min(counts.values()) <= 1
    assert order[: len(counts)] != order[len(counts) : 2 * len(counts)]


@pytest.mark.parametrize("word", ["memory_map", "on_the_fly"])
def test_where_data_is_kept_changes_no_batch(
    described: tuple[WorkloadFacts, Path], objective: Objective, word: str
) -> None:
    facts, cache = described
    other = load_objective(facts.workload.objective)(facts.workload, cache)
    changed = first(other, 30, replace(PLAN, **{word: True}))
    assert all(same(a, b) for a, b in zip(first(objective, 30), changed, strict=True))


@pytest.mark.parametrize("word", ["by_length", "documents"])
def test_no_batch_is_larger_than_those_that_are_measured(objective: Objective, word: str) -> None:
    some = first(objective, 60, replace(PLAN, **{word: True}))
    sizes = [sum(tensor.numel() for tensor in batch.values()) for batch in some]
    assert sizes[:PROBE_STEPS] == [max(sizes)] * PROBE_STEPS
    assert {len(tensor) for batch in some for tensor in batch.values()} == {PLAN.global_batch}
    assert len({frozenset(batch) for batch in some}) == 1


def test_features_are_words_that_are_known(described: tuple[WorkloadFacts, Path]) -> None:
    known = {"by_length", "documents", "on_the_fly", "memory_map", "stream", "fixed_length"}
    assert set(described[0].features) <= known
    assert len(described[0].features) == len(set(described[0].features))


def test_the_loss_is_finite_and_reaches_every_weight(objective: Objective) -> None:
    model = objective.build(LoadPlan(), seed=0)
    assert model.training
    loss = objective.loss(model, first(objective, 1)[0], StepPlan())
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    assert math.isfinite(loss.item())
    loss.backward()
    assert gradients(model).keys() == dict(model.named_parameters()).keys()


def test_micro_batches_average_to_the_global_batch(objective: Objective) -> None:
    model, batch = objective.build(LoadPlan(), seed=0), first(objective, 1)[0]
    whole = objective.loss(model, batch, StepPlan())
    whole.backward()
    expected = gradients(model)
    pieces = [objective.loss(model, half, StepPlan(accumulation=2)) / 2 for half in halves(batch)]
    torch.stack(pieces).sum().backward()
    torch.testing.assert_close(torch.stack(pieces).sum(), whole)
    torch.testing.assert_close(gradients(model), expected, rtol=1e-4, atol=1e-6)


def test_building_honours_dtype_attention_and_seed(
    objective: Objective, capfd: pytest.CaptureFixture[str]
) -> None:
    wide = objective.build(LoadPlan(), seed=0)
    narrow = objective.build(LoadPlan(dtype="bfloat16", attention="eager"), seed=0)
    assert {p.dtype for p in wide.parameters()} == {torch.float32}
    assert {p.dtype for p in narrow.parameters()} == {torch.bfloat16}
    assert narrow.config._attn_implementation == "eager"
    assert not narrow.config.use_cache
    again = objective.build(LoadPlan(), seed=0)
    pairs = zip(wide.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert capfd.readouterr() == ("", "")


def test_random_weights_are_the_same_in_every_dtype(
    described: tuple[WorkloadFacts, Path], tmp_path: Path
) -> None:
    facts, _ = described
    folder = tmp_path / "model"
    tiny_folders.save_model(folder, facts.workload.objective)
    (folder / "model.safetensors").unlink()
    workload = replace(facts.workload, model=str(folder))
    objective = load_objective(workload.objective)(workload, tmp_path)
    found = objective.describe()
    assert not found.model.pretrained
    assert "has no weights" in found.note
    wide = objective.build(LoadPlan(), seed=3)
    narrow = objective.build(LoadPlan(dtype="bfloat16"), seed=3)
    for a, b in zip(wide.parameters(), narrow.parameters(), strict=True):
        assert torch.equal(a.bfloat16(), b)


def test_evaluation_gives_every_metric_and_leaves_the_model_as_it_was(
    described: tuple[WorkloadFacts, Path], objective: Objective
) -> None:
    facts, _ = described
    model, plan = objective.build(LoadPlan(), seed=0), EvalPlan(batch=4)
    batches = objective.eval_batches(plan, 16)
    assert [len(batch["input_ids"]) for batch in batches] == [4, 4, 2]
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
    again = objective.evaluate(model, objective.eval_batches(other, 16), other)
    for name, score in scores.items():
        assert again[name].value == pytest.approx(score.value, rel=1e-4)
        assert again[name].n == score.n


def test_other_sequence_lengths_than_prepared(objective: Objective) -> None:
    for length in (5, 24):
        plan = DataPlan(sequence_length=length, global_batch=4)
        assert first(objective, 1, plan)[0]["input_ids"].shape == (4, length)
        assert objective.eval_batches(EvalPlan(), length)[0]["input_ids"].shape[1] == length


def test_what_was_trained_is_a_model_to_start_from(
    described: tuple[WorkloadFacts, Path], objective: Objective, tmp_path: Path
) -> None:
    facts, _ = described
    model, batch = objective.build(LoadPlan(), seed=0), first(objective, 1)[0]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    objective.loss(model, batch, StepPlan()).backward()
    optimizer.step()
    model.save_pretrained(tmp_path / "trained")
    tiny_folders.byte_tokenizer().save_pretrained(tmp_path / "trained")
    workload = replace(facts.workload, model=str(tmp_path / "trained"))
    reloaded: Any = load_objective(workload.objective)(workload, tmp_path / "cache")
    assert reloaded.describe().data_fingerprint == facts.data_fingerprint
    plan = EvalPlan()
    batches = objective.eval_batches(plan, 16)
    expected = objective.evaluate(model, batches, plan)
    assert reloaded.evaluate(reloaded.build(LoadPlan(), seed=9), batches, plan) == expected
