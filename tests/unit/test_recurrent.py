"""Recurrent classifiers: plain modules that train, whatever the dtype, and that padding leaves."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from autotune.objectives import recurrent, text_classification
from autotune.objectives.recurrent import RECURRENT, RecurrentConfig, build_recurrent
from autotune.objectives.text_classification import TextClassification
from torch import Tensor, nn

from autotune.core.workload import Workload, WorkloadFacts
from autotune.knobs.bytes import storage_bytes
from autotune.knobs.stages import DataPlan, EvalPlan, LoadPlan, StepPlan
from autotune.trial.loop import train_step
from tests import tiny_folders

SMALL = RecurrentConfig(
    model_type="lstm", vocab_size=40, embedding_size=8, hidden_size=16, num_labels=3
)
IDS = torch.randint(1, 40, (4, 12), generator=torch.Generator().manual_seed(0))


def small(kind: str = "lstm", dtype: str = "float32") -> recurrent.RecurrentClassifier:
    return build_recurrent(replace(SMALL, model_type=kind), LoadPlan(dtype=dtype), seed=0)


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", RECURRENT)
def test_padding_changes_neither_logits_nor_gradients(kind: str) -> None:
    mask = torch.zeros(4, 20, dtype=torch.long)
    mask[:, :12] = 1
    padded = torch.cat([IDS, torch.full((4, 8), SMALL.pad_token_id)], 1)
    labels = torch.tensor([0, 1, 2, 1])
    model, again = small(kind), small(kind)
    plain = model(input_ids=IDS, labels=labels)
    wide = again(input_ids=padded, attention_mask=mask, labels=labels)
    torch.testing.assert_close(wide.logits, plain.logits)
    assert plain.logits.shape == (4, 3)
    expected = nn.functional.cross_entropy(plain.logits, labels)
    torch.testing.assert_close(plain.loss, expected)
    torch.testing.assert_close(gradients(again, wide.loss), gradients(model, plain.loss))


@pytest.mark.parametrize("kind", RECURRENT)
def test_layers_are_those_of_torch(kind: str) -> None:
    model = small(kind)
    cell = {"lstm": nn.LSTM, "gru": nn.GRU}[kind]
    whole = cell(8, 16, num_layers=2, batch_first=True)
    with torch.no_grad():
        for place, layer in enumerate(model.layers):
            for name, weight in layer.named_parameters():
                getattr(whole, name.replace("_l0", f"_l{place}")).copy_(weight)
        states = whole(model.embedding(IDS))[0]
        torch.testing.assert_close(model(IDS).logits, model.head(states.mean(1)))


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("kind", RECURRENT)
def test_narrow_weights_train_whatever_the_processor(
    kind: str, slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        recurrent, "product_dtype", lambda weight: torch.float32 if slow else weight.dtype
    )
    labels = torch.tensor([0, 1, 2, 1])
    wide, narrow = small(kind), small(kind, "bfloat16")
    for a, b in zip(wide.parameters(), narrow.parameters(), strict=True):
        assert torch.equal(a.bfloat16(), b)
    out = narrow(input_ids=IDS, labels=labels)
    assert out.logits.dtype is torch.bfloat16
    found = gradients(narrow, out.loss)
    expected = gradients(wide, wide(input_ids=IDS, labels=labels).loss)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert gradient.dtype is torch.bfloat16
        close = nn.functional.cosine_similarity(gradient.float().ravel(), expected[name].ravel(), 0)
        assert close > 0.99, name
    with torch.no_grad():
        assert torch.equal(narrow(input_ids=IDS).logits, out.logits)


def test_slow_narrow_layers_keep_only_their_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    def kept(product: torch.dtype) -> int:
        monkeypatch.setattr(recurrent, "product_dtype", lambda weight: product)
        model, saved = small(dtype="bfloat16"), []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
            model(input_ids=IDS)
        return storage_bytes(saved)

    assert kept(torch.float32) < kept(torch.bfloat16) / 2


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> tuple[WorkloadFacts, Path]:
    folder = tmp_path_factory.mktemp("recurrent")
    workload = Workload(
        objective="text_classification",
        model="lstm",
        data=str(tiny_folders.write_rows(folder / "rows.jsonl")),
        sequence_length=16,
        global_batch=8,
    )
    return TextClassification(workload, folder).describe(), folder


@pytest.fixture
def task(
    described: tuple[WorkloadFacts, Path], monkeypatch: pytest.MonkeyPatch
) -> TextClassification:
    """The task as a trial makes it, with a model that trains in milliseconds."""
    made = text_classification.recurrent_config

    def shrunk(*args: object) -> RecurrentConfig:
        return replace(made(*args), embedding_size=16, hidden_size=32)

    monkeypatch.setattr(text_classification, "recurrent_config", shrunk)
    monkeypatch.setattr(TextClassification, "look", lambda self: pytest.fail("looked again"))
    return TextClassification(described[0].workload, described[1])


def test_facts_say_that_there_is_no_attention(described: tuple[WorkloadFacts, Path]) -> None:
    facts, folder = described
    assert WorkloadFacts.from_json(json.loads(json.dumps(facts.to_json()))) == facts
    model = facts.model
    assert (model.name, model.family) == ("LSTM 2x512", "lstm")
    assert (model.layers, model.hidden) == (2, 512)
    assert (model.heads, model.kv_heads, model.ffn, model.vocab) == (0, 0, 0, 0)
    assert not model.pretrained
    built = TextClassification(facts.workload, folder).build(LoadPlan(), seed=0)
    assert model.parameters == sum(p.numel() for p in built.parameters())
    assert json.loads(json.dumps(built.config.to_dict()))["model_type"] == "lstm"
    assert set(facts.features) == {"by_length", "on_the_fly", "memory_map"}


def test_it_learns_what_words_tell(task: TextClassification) -> None:
    model = task.build(LoadPlan(), seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    plan = DataPlan(sequence_length=16, global_batch=8)
    for batch in itertools.islice(task.train_batches(plan, 0), 40):
        train_step(task, model, optimizer, batch, StepPlan(), device=torch.device("cpu"))
    batches = task.eval_batches(EvalPlan(), 16)
    assert task.evaluate(model, batches, EvalPlan())["accuracy"].value > 0.9
    assert model.training


def test_weights_follow_from_the_seed(task: TextClassification) -> None:
    one, same, other = (task.build(LoadPlan(), seed=seed) for seed in (0, 0, 1))
    for a, b, c in zip(one.parameters(), same.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)
    shapes = task.build(LoadPlan(shapes_only=True, dtype="bfloat16"), seed=0)
    for a, b in zip(one.parameters(), shapes.parameters(), strict=True):
        assert (b.device.type, b.dtype, b.shape) == ("meta", torch.bfloat16, a.shape)


def test_the_tokenizer_of_a_made_up_model_is_kept(task: TextClassification) -> None:
    plan = DataPlan(sequence_length=16, global_batch=8)
    fresh = replace(plan, on_the_fly=True)
    for a, b in itertools.islice(
        zip(task.train_batches(plan, 0), task.train_batches(fresh, 0), strict=False), 30
    ):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)
