"""Language modelling: streams and blocks, bytes of tokens, the loss in pieces, the scores."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from autotune.objectives.causal_lm import CausalLM
from autotune.objectives.generation import STREAMED
from autotune.objectives.streams import (
    DocumentRows,
    FreshTokens,
    blocks,
    count_blocks,
    encode_documents,
    encode_stream,
    split_documents,
    split_end,
    token_bytes,
)
from torch import nn

from autotune.core.errors import DataError, ModelError
from autotune.core.knob import run_stage
from autotune.core.workload import Workload
from autotune.knobs import BUILTIN
from autotune.knobs.stages import ADAPT, Adaptation, DataPlan, EvalPlan, LoadPlan, StepPlan
from tests import tiny_folders
from tests import tiny_models as tiny

PLAN = DataPlan(sequence_length=16, global_batch=4)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> CausalLM:
    folder = tmp_path_factory.mktemp("causal")
    workload = Workload(
        objective="causal_lm",
        model=str(tiny_folders.save_model(folder / "model", "causal_lm")),
        data=str(tiny_folders.write_rows(folder / "rows.jsonl")),
        sequence_length=16,
    )
    task = CausalLM(workload, folder)
    task.describe()
    return task


class Wrapped(nn.Module):
    """What peft puts around a model: it hides the model's own methods."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.base_model = nn.ModuleDict({"model": model})

    def get_base_model(self) -> nn.Module:
        return self.base_model["model"]

    def forward(self, **inputs: torch.Tensor) -> object:
        return self.get_base_model()(**inputs)


@pytest.mark.parametrize("wrap", ["plain", "adapters", "wrapped"])
@pytest.mark.parametrize("chunks", [2, 7])
def test_the_loss_in_pieces_is_the_loss(task: CausalLM, wrap: str, chunks: int) -> None:
    model = task.build(LoadPlan(), seed=0)
    if wrap == "adapters":
        model = run_stage(ADAPT, Adaptation(model=model), BUILTIN, {"lora.rank": 4}).model
    elif wrap == "wrapped":
        model = Wrapped(model)
    batch = next(task.train_batches(PLAN, 0))
    results = []
    for plan in (StepPlan(), StepPlan(loss_chunks=chunks)):
        loss = task.loss(model, batch, plan)
        loss.backward()
        grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        model.zero_grad(set_to_none=True)
        results.append((loss.detach(), grads))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-6)


def test_models_that_change_their_logits_are_refused_and_evaluated_whole(task: CausalLM) -> None:
    model = tiny.build("gemma2", attention="eager")
    ids = torch.arange(3, 19).reshape(1, 16)
    batch = {"input_ids": ids, "labels": ids.roll(-1, 1)}
    with pytest.raises(ModelError, match="cannot be computed in pieces") as caught:
        task.loss(model, batch, StepPlan(loss_chunks=2))
    assert caught.value.help == "set loss_chunks to 1"
    model.eval()
    expected = task.loss(model, batch, StepPlan()).exp().item()
    model.train()
    scores = task.evaluate(model, [batch], EvalPlan())
    assert scores["perplexity"].value == pytest.approx(expected, rel=1e-5)
    assert scores["perplexity"].stderr is None  # one sequence tells nothing of the spread


def test_scores_are_means_with_the_spread_of_sequences(task: CausalLM) -> None:
    model = task.build(LoadPlan(), seed=0)
    batches = task.eval_batches(EvalPlan(batch=4), 16)
    scores = task.evaluate(model, batches, EvalPlan())
    losses = []
    with torch.no_grad():
        for batch in batches:
            logits = model(input_ids=batch["input_ids"]).logits
            loss = nn.functional.cross_entropy(
                logits.flatten(0, 1), batch["labels"].flatten(), reduction="none"
            )
            losses += loss.view(-1, 16).mean(1).tolist()
    mean, error = np.mean(losses), np.std(losses, ddof=1) / math.sqrt(len(losses))
    assert scores["perplexity"].value == pytest.approx(math.exp(mean), rel=1e-5)
    assert scores["perplexity"].stderr == pytest.approx(math.exp(mean) * error, rel=1e-4)
    tokens, size = 16 * len(losses), sum(int(batch["bytes"].sum()) for batch in batches)
    assert scores["bits_per_byte"].value == pytest.approx(mean * tokens / size / math.log(2))
    assert all(score.n == tokens for score in scores.values())


def test_blocks_cover_the_stream_once_and_labels_are_the_next_tokens() -> None:
    stream = np.arange(32, dtype=np.int32)
    assert count_blocks(stream, 10) == 3
    assert count_blocks(stream[:31], 10) == 3
    assert count_blocks(stream[:30], 10) == 2
    inputs, labels = blocks(stream, [2, 0, 1], 10)
    assert inputs[0].tolist() == list(range(20, 30))
    assert (labels == inputs + 1).all()
    assert sorted(labels.ravel().tolist()) == list(range(1, 31))


@pytest.mark.parametrize("text", ["sea waves", "naïve café 😀 sea", "  soil\n\n end  ", "é"])
def test_bytes_of_tokens_add_up_to_the_text(text: str) -> None:
    tokenizer = tiny_folders.byte_tokenizer()
    documents = [text, "wave", ""]
    sizes = token_bytes(documents, tokenizer)
    assert sizes is not None
    assert len(sizes) == len(encode_stream(documents, tokenizer))
    assert sizes.sum() == sum(len(document.encode()) for document in documents)
    assert (sizes >= 0).all()


def test_without_a_tokenizer_tokens_are_bytes() -> None:
    stream, sizes = encode_stream(["é", "a"], None), token_bytes(["é", "a"], None)
    assert bytes(stream.tolist()).decode() == "é\n\na"
    assert sizes is not None
    assert sizes.tolist() == [1] * 5


def test_few_documents_lose_their_end_and_many_lose_some() -> None:
    lines = "".join(f"line {place}\n" for place in range(100))
    train, held = split_documents([lines])
    assert train[0] + held[0] == lines
    assert held[0].startswith("line 9")
    assert 0.05 < len(held[0]) / len(lines) < 0.15
    documents = [f"document {place}" for place in range(50)]
    train, held = split_documents(documents)
    assert len(held) == 5
    assert sorted(train + held) == sorted(documents)
    assert held != documents[-5:]


def test_too_little_text_says_how_much_is_needed(tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("too short a text " * 40)
    with pytest.raises(DataError, match="4 sequences of 128 tokens to train on") as caught:
        CausalLM(Workload(objective="causal_lm", data=str(path)), tmp_path).describe()
    assert caught.value.where == str(path)
    assert "training.global_batch" in str(caught.value.help)
    workload = Workload(objective="causal_lm", data=str(path), global_batch=1, sequence_length=300)
    with pytest.raises(DataError, match="no sequences of 300 tokens to evaluate on"):
        CausalLM(workload, tmp_path).describe()


def test_a_held_out_file_is_used_as_it_is(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.txt").write_text("a" * 3000)
    (data / "validation.txt").write_text("b" * 400)
    task = CausalLM(Workload(objective="causal_lm", data=str(data)), tmp_path / "cache")
    facts = task.describe()
    assert facts.workload.eval_examples == 3
    assert set(task.eval_batches(EvalPlan(), 128)[0]["labels"].unique().tolist()) == {ord("b")}
    batches = itertools.islice(task.train_batches(PLAN, 0), 50)
    assert {int(token) for batch in batches for token in batch["labels"].unique()} == {ord("a")}


def test_the_end_is_split_off_at_a_line_and_documents_stay_apart() -> None:
    documents = ["first\nlines\n" * 10, "second\nlines\n" * 10, "third\nlines\n" * 10]
    train, held = split_end(documents)
    assert train[:2] == documents[:2]
    assert train[2] + held[0] == documents[2]
    assert train[2].endswith("\n")
    # A tenth of the 43 characters that it is with the empty line between.
    assert split_end(["a", "b" * 40]) == (["a", "b" * 35], ["b" * 5])
    assert split_end([""]) == ([""], [""])


@pytest.mark.parametrize("bytes_", [False, True])
def test_documents_end_where_the_stream_says(bytes_: bool) -> None:
    tokenizer = None if bytes_ else tiny_folders.byte_tokenizer()
    documents = ["sea waves", "", "naïve café", "soil"]
    stream, ends = encode_documents(documents, tokenizer)
    assert ends[-1] == len(stream)
    starts = [0, *ends[:-1]]
    for start, end, document in zip(starts, ends, documents, strict=True):
        alone = encode_stream([document], tokenizer)
        assert stream[start:end].tolist()[: len(alone)] == alone.tolist()
    if tokenizer is None:
        return
    fresh = FreshTokens(documents=documents, ends=ends, tokenizer=tokenizer)
    assert len(fresh) == len(stream)
    for start, stop in itertools.combinations(range(len(stream) + 1), 2):
        assert fresh[start:stop].tolist() == stream[start:stop].tolist()


def test_rows_of_documents_hold_each_label_once() -> None:
    stream = np.arange(40)
    ends = np.array([1, 9, 10, 10, 35, 40])
    rows = DocumentRows.of(ends, 8)
    inputs, labels = rows.padded(stream, range(len(rows)))
    assert inputs.shape == labels.shape == (len(rows), 8)
    counted = labels != -100
    assert (labels[counted] == inputs[counted] + 1).all()
    # A document's first token follows nothing, so it is nobody's label.
    expected = sorted(set(range(40)) - {0, *ends[:-1].tolist()})
    assert sorted(labels[counted].tolist()) == expected
    assert counted.any(1).all()
    assert (np.diff(counted.astype(int), axis=1) <= 0).all()
    document = np.searchsorted(ends, stream, side="right")
    for row, mask in zip(labels, counted, strict=True):
        assert len(set(document[row[mask]])) == 1
    with pytest.raises(DataError, match="no document has two tokens"):
        DocumentRows.of(np.array([1, 2, 3]), 8)


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("default", [False, True])
def test_where_tokens_come_from_changes_no_batch(
    task: CausalLM, tmp_path: Path, default: bool, documents: bool
) -> None:
    if default:
        task = CausalLM(Workload(objective="causal_lm"), tmp_path)
        assert {"documents", "memory_map", "on_the_fly", "stream"} == set(task.describe().features)
    plan = DataPlan(sequence_length=24, global_batch=4, documents=documents)
    expected = list(itertools.islice(task.train_batches(plan, 3), 30))
    for change in ({"on_the_fly": True}, {"memory_map": True}):
        trial = CausalLM(task.workload, task._cache)
        other = itertools.islice(trial.train_batches(replace(plan, **change), 3), 30)
        for a, b in zip(expected, other, strict=True):
            assert a.keys() == b.keys()
            assert all(torch.equal(a[name], b[name]) for name in a)
        assert "train" not in trial._held
        assert trial._held.keys() <= ({"train_ends"} if "on_the_fly" in change else set())
    assert "train" in task._held


def test_documents_come_whole_and_apart(task: CausalLM) -> None:
    plan = DataPlan(sequence_length=128, global_batch=4, documents=True)
    batches = list(itertools.islice(task.train_batches(plan, 0), 18))
    seen = Counter()
    for batch in batches:
        for inputs, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            real = int((labels != -100).sum())
            assert 0 < real < 128
            assert labels[:real].tolist() == [*inputs[1:real].tolist(), 0]  # the end-of-text token
            seen[tuple(inputs[:real].tolist())] += 1
    assert len(seen) == 72  # of 80 documents, a tenth is held out
    assert set(seen.values()) == {1}


@pytest.mark.parametrize("chunks", [1, 3])
def test_documents_in_micro_batches_have_the_mean_loss_of_their_tokens(
    task: CausalLM, chunks: int
) -> None:
    model = task.build(LoadPlan(), seed=0)
    plan = DataPlan(sequence_length=60, global_batch=8, documents=True)
    batch = next(task.train_batches(plan, 0))
    real = (batch["labels"] != -100).sum(1)
    assert len(set(real.tolist())) > 1
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"]).logits.flatten(0, 1)
        expected = nn.functional.cross_entropy(logits, batch["labels"].flatten())
    for pieces in (1, 2, 4, 8):
        total = torch.zeros(())
        for place in range(pieces):
            micro = {name: tensor.chunk(pieces)[place] for name, tensor in batch.items()}
            total += task.loss(model, micro, StepPlan(loss_chunks=chunks)).detach() / pieces
        torch.testing.assert_close(total, expected)


def test_what_fills_a_row_of_a_document_changes_nothing(task: CausalLM) -> None:
    model = task.build(LoadPlan(), seed=0)
    plan = DataPlan(sequence_length=60, global_batch=8, documents=True)
    batch = next(task.train_batches(plan, 0))
    blank = batch["labels"] == -100
    other = {**batch, "input_ids": batch["input_ids"].masked_fill(blank, 7)}
    losses = [task.loss(model, some, StepPlan()) for some in (batch, other)]
    assert blank.any()
    assert torch.equal(*losses)


def test_long_documents_are_not_encoded_again_and_again(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("waves and soil " * 6000)
    model = tiny_folders.save_model(tmp_path / "model", "causal_lm")
    workload = Workload(objective="causal_lm", data=str(path), model=str(model))
    assert "on_the_fly" not in CausalLM(workload, tmp_path / "one").describe().features
    bytes_ = replace(workload, model=None)
    assert "on_the_fly" in CausalLM(bytes_, tmp_path / "two").describe().features


@pytest.mark.parametrize("family", tiny.CAUSAL)
def test_reading_in_pieces_gives_the_same_scores(task: CausalLM, family: str) -> None:
    assert family in STREAMED
    model = tiny.build(family).eval()
    ids = torch.randint(3, tiny.VOCAB, (3, 150), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "labels": ids.roll(-1, 1)}
    plain = task.evaluate(model, [batch], EvalPlan())
    for change in ({}, {"loss_chunks": 5}):
        streamed = task.evaluate(model, [batch], EvalPlan(stream=True, **change))
        for name, score in plain.items():
            assert streamed[name].value == pytest.approx(score.value, rel=1e-5), name
    rounded = task.evaluate(model, [batch], EvalPlan(stream=True, cache_bits=2))
    assert rounded["perplexity"].value != pytest.approx(plain["perplexity"].value, rel=1e-5)


def test_reading_in_pieces_starts_anew_with_every_batch(task: CausalLM) -> None:
    model = task.build(LoadPlan(), seed=0)
    plan = EvalPlan(batch=2, stream=True)
    batches = task.eval_batches(plan, 16)
    once = task.evaluate(model, batches, plan)
    assert task.evaluate(model, batches, plan) == once
    assert once["perplexity"].value == pytest.approx(
        task.evaluate(model, batches, EvalPlan(batch=2))["perplexity"].value, rel=1e-5
    )
